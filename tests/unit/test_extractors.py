"""The extractor interface, the digits classifier and the CIFAR ResNet-56."""

import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch

from diffusion.metrics import DigitsClassifier, ResNet56
from diffusion.metrics.extractors import digits as digits_module
from diffusion.support.errors import UserError

DATA = Path(__file__).parents[3] / "shared" / "data"
WEIGHTS = DATA / "resnet_cifar10" / "resnet56-4bfd9763.th"
CIFAR = DATA / "cifar10" / "cifar-10-binary.tar.xz"


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def classifier(cache):
    return DigitsClassifier(cache=cache)


def digit_images():
    inputs, labels = digits_module.digits()
    return ((inputs + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1), labels


def test_digits_classifier_knows_its_digits(classifier):
    images, labels = digit_images()
    features, logits, *_ = classifier.outputs(images).values()
    assert classifier.accuracy >= 0.97
    assert (logits.argmax(1) == labels).double().mean() >= 0.985  # all 1,797, most of them seen in training
    assert features.shape == (1797, classifier.dim)
    assert (classifier.name, classifier.frechet) == ("digits", "fd-digits")


def test_digits_classifier_is_trained_once_and_the_same_each_time(classifier, cache, tmp_path, monkeypatch):
    """And the training moves no random state and no thread count."""
    state, threads = torch.get_rng_state(), torch.get_num_threads()
    again = DigitsClassifier(cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == threads
    assert again.weights_hash == classifier.weights_hash
    monkeypatch.setattr(digits_module, "train_classifier", lambda: pytest.fail("trained although it was cached"))
    assert DigitsClassifier(cache=cache).weights_hash == classifier.weights_hash
    assert DigitsClassifier(cache=cache).accuracy == classifier.accuracy


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b"", lambda b: flip(b, len(b) // 2)])
def test_a_damaged_cache_file_is_made_again(classifier, cache, tmp_path, damage, monkeypatch):
    """By its recipe, which is followed in the tests above."""
    (source,) = (cache / "extractors").glob("digits*.pt")
    made = {**classifier.network.state_dict(), "accuracy": torch.tensor(classifier.accuracy, dtype=torch.float64)}
    monkeypatch.setattr(digits_module, "train_classifier", lambda: made)
    target = tmp_path / "extractors" / source.name
    target.parent.mkdir()
    target.write_bytes(damage(source.read_bytes()))
    with pytest.warns(UserWarning, match="is damaged and will be made again"):
        assert DigitsClassifier(cache=tmp_path).weights_hash == classifier.weights_hash
    assert DigitsClassifier(cache=tmp_path).weights_hash == classifier.weights_hash
    assert not list(target.parent.glob("*.tmp"))


def flip(content, position):
    return content[:position] + bytes([content[position] ^ 255]) + content[position + 1 :]


def test_features_do_not_depend_on_the_batch_or_autocast(classifier, monkeypatch):
    images, _ = digit_images()
    whole = classifier(images[:100])
    monkeypatch.setattr(DigitsClassifier, "batch", 7)
    torch.testing.assert_close(classifier(images[:100]), whole, rtol=1e-5, atol=1e-5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = classifier(images[:100])
    assert mixed.dtype == torch.float32
    torch.testing.assert_close(mixed, whole, rtol=1e-5, atol=1e-5)


def test_larger_grey_images_are_averaged_to_8x8(classifier):
    images, _ = digit_images()
    larger = images[:20].repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert larger.shape == (20, 32, 32, 1)
    torch.testing.assert_close(classifier(larger), classifier(images[:20]), rtol=1e-5, atol=1e-5)


def test_it_is_frozen_and_no_module(classifier):
    images, _ = digit_images()
    assert not classifier(images[:2]).requires_grad
    assert not classifier.network.training
    holder = torch.nn.Module()
    holder.metric = classifier
    assert not holder.state_dict()
    assert not list(holder.parameters())


def test_bad_images_are_refused(classifier):
    with pytest.raises(ValueError, match="must be uint8"):
        classifier(torch.zeros(2, 8, 8, 1))
    with pytest.raises(UserError, match="1-channel images and the data set has 3"):
        classifier(torch.zeros(2, 8, 8, 3, dtype=torch.uint8))
    with pytest.raises(UserError, match="reads no weights"):
        DigitsClassifier(weights="somewhere.pt")


def test_resnet_without_a_good_file_is_said_at_construction(tmp_path):
    with pytest.raises(UserError, match=r"give its path by metric\.weights=PATH"):
        ResNet56()
    with pytest.raises(UserError, match="There is no file"):
        ResNet56(tmp_path / "absent.th")
    (tmp_path / "text.th").write_text("not a checkpoint")
    torch.save({"state_dict": {"module.conv1.weight": torch.zeros(3)}}, tmp_path / "other.th")
    for name in ("text.th", "other.th"):
        with pytest.raises(UserError, match="does not hold a CIFAR-10 ResNet-56"):
            ResNet56(tmp_path / name)


def cifar_test_images():
    with tarfile.open(CIFAR) as archive:
        for member in archive:
            if member.name.endswith("test_batch.bin"):
                records = np.frombuffer(archive.extractfile(member).read(), np.uint8).reshape(-1, 3073)
                break
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return torch.from_numpy(images.copy()), torch.from_numpy(records[:, 0].astype(np.int64))


def accuracy(images, labels):
    extractor = ResNet56(WEIGHTS)
    features, logits, *_ = extractor.outputs(images).values()
    assert features.shape == (len(images), 64)
    return (logits.argmax(1) == labels).double().mean().item()


needs_cifar = pytest.mark.skipif(not (WEIGHTS.exists() and CIFAR.exists()), reason="no CIFAR-10 and ResNet-56 here")


@needs_cifar
def test_resnet_accuracy_on_500_test_images():
    images, labels = cifar_test_images()
    # 93.39 % on all 10,000, so 4 standard errors of 500 images are 4.4 %.
    assert accuracy(images[:500], labels[:500]) == pytest.approx(0.9339, abs=0.044)


@needs_cifar
@pytest.mark.slow
def test_resnet_accuracy_on_the_whole_test_set():
    # 93.39 % is the figure published with the checkpoint (its error: 6.61 %).
    assert accuracy(*cifar_test_images()) == pytest.approx(0.9339, abs=5e-5)
