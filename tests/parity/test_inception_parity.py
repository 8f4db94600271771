"""Our Inception extractor against torch-fidelity's own path, with the same random weights in both."""

import pytest
import torch

from diffusion.metrics import InceptionV3
from diffusion.support.errors import UserError

fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file of random weights, made without the download that torch-fidelity's constructor insists on."""
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(fidelity, "load_state_dict_from_url", lambda *args, **kwargs: None)
        patch.setattr(fidelity.FeatureExtractorInceptionV3, "load_state_dict", lambda self, state: None)
        network = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    torch.save(network.state_dict(), path)
    return path


@pytest.mark.parametrize("size", [32, 256])
def test_the_whole_pipeline_equals_torch_fidelitys(weights, tmp_path, size):
    images = torch.randint(0, 256, (4, size, size, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    state = torch.get_rng_state()
    ours = InceptionV3(weights, cache=tmp_path)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = fidelity.FeatureExtractorInceptionV3("reference", ["2048", "logits_unbiased"], feature_extractor_weights_path=str(weights))
    features, logits, *_ = ours.outputs(images).values()
    expected_features, expected_logits = theirs(images.permute(0, 3, 1, 2))
    assert features.shape == (4, 2048)
    assert expected_features.std() > 0
    torch.testing.assert_close(features, expected_features, rtol=1e-5, atol=1e-5 * expected_features.std().item())
    red_and_blue_swapped = theirs(images.flip(3).permute(0, 3, 1, 2))[0]
    assert (red_and_blue_swapped - expected_features).abs().max() > 100 * 1e-5 * expected_features.std()
    torch.testing.assert_close(logits, expected_logits, rtol=1e-5, atol=1e-5 * expected_logits.std().item())
    grey = ours(images[:2, ..., :1])
    torch.testing.assert_close(grey, ours(images[:2, ..., :1].repeat(1, 1, 1, 3)), rtol=1e-5, atol=1e-6)


def test_sfid_looks_at_the_first_channels_of_mixed_6(weights, tmp_path):
    """[b, 17 x 17 x 7], the seven of Mixed_6d's first branch, as Mixed_6d itself passes them on, in the order of guided-diffusion's
    mu_s: row, column, channel; a second call holds no old ones."""
    ours, seen = InceptionV3(weights, cache=tmp_path), []
    ours.network.network.Mixed_6d.register_forward_hook(lambda module, args, output: seen.append(output))
    images = torch.randint(0, 256, (2, 32, 32, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    spatial = ours.outputs(images)["spatial"]
    assert spatial.shape == (2, 2023) and ours.width("spatial", (32, 32, 3)) == 2023
    assert torch.equal(spatial.reshape(2, 17, 17, 7), seen[0][:, :7].permute(0, 2, 3, 1))
    assert ours.network.seen == []


def test_no_network_is_said_at_construction(monkeypatch, tmp_path):
    from urllib.error import URLError

    def unreachable(*args, **kwargs):
        raise URLError("no network")

    monkeypatch.setattr(fidelity, "load_state_dict_from_url", unreachable)
    with pytest.raises(UserError, match=r"could not be downloaded .* metric\.weights=PATH"):
        InceptionV3(cache=tmp_path)


def test_wrong_files_are_said_at_construction(tmp_path):
    with pytest.raises(UserError, match="There is no file"):
        InceptionV3(tmp_path / "absent.pth", cache=tmp_path)
    (tmp_path / "text.pth").write_text("not weights")
    with pytest.raises(UserError, match="is not a file of plain tensors"):
        InceptionV3(tmp_path / "text.pth", cache=tmp_path)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pth")
    with pytest.raises(UserError, match="does not hold the FID Inception weights"):
        InceptionV3(tmp_path / "other.pth", cache=tmp_path)
