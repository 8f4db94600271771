"""The real sets against their published bytes, read here by other means than the code under test."""

import gzip
import hashlib
import subprocess

import numpy as np
import pytest
from sklearn.datasets import load_digits
from torchvision import datasets as reference

from diffusion.data import CIFAR10, MNIST, Digits, FashionMNIST
from diffusion.support.errors import UserError

GREY = [(MNIST, reference.MNIST), (FashionMNIST, reference.FashionMNIST)]


def test_digits_are_scaled_to_the_full_range_with_rounding(tmp_path):
    images = Digits(cache=tmp_path).load()
    bunch = load_digits()
    assert images.images.shape == (1797, 8, 8, 1) and images.images.dtype == np.uint8
    expected = [round(16 * v * 255 / 256 + 1e-9) for v in range(17)]  # 1e-9: a half goes up, as 127.5 -> 128
    assert np.array_equal(images.images[..., 0], np.array(expected)[bunch.images.astype(int)])
    assert images.images.max() == 255 and np.array_equal(images.labels, bunch.target)


def test_digits_hold_out_is_fixed_and_disjoint(tmp_path):
    whole, fit, test = (Digits(cache=tmp_path, split=split).load() for split in ("train", "fit", "test"))
    assert (len(fit), len(test)) == (1497, 300)
    assert np.array_equal(test.images, whole.images[::6])
    assert np.array_equal(np.delete(whole.images, np.s_[::6], axis=0), fit.images)


@pytest.mark.parametrize("ours,theirs", GREY)
@pytest.mark.parametrize("split,prefix,n", [("train", "train", 60000), ("test", "t10k", 10000)])
def test_grey_sets_hold_the_official_bytes(real_root, real_cache, ours, theirs, split, prefix, n):
    images = ours(real_root, real_cache, split).load()
    files = {name: real_root / ours.name / name for name, _ in theirs.resources}
    for name, md5 in theirs.resources:
        assert hashlib.md5(files[name].read_bytes()).hexdigest() == md5
    pixels = gzip.decompress(files[f"{prefix}-images-idx3-ubyte.gz"].read_bytes())[16:]
    labels = gzip.decompress(files[f"{prefix}-labels-idx1-ubyte.gz"].read_bytes())[8:]
    assert images.images.shape == (n, 28, 28, 1)
    assert images.images.tobytes() == pixels
    assert images.labels.dtype == np.int64 and bytes(images.labels.astype(np.uint8)) == labels
    assert np.bincount(images.labels).size == images.num_classes == 10
    assert images.sha256 == hashlib.sha256(pixels + images.labels.tobytes()).hexdigest()


def holds(images, files):
    """Whether the set is these binary files: one label byte, then planes R, G, B."""
    records = np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8).reshape(-1, 3073)
    planes = images.images.transpose(0, 3, 1, 2).reshape(len(images), 3072)
    return np.array_equal(images.labels, records[:, 0]) and np.array_equal(planes, records[:, 1:])


def test_cifar10_train_from_the_xz_archive(real_root, real_cache, cifar10_bin, offline):
    images = CIFAR10(real_root, real_cache).load()
    assert images.images.shape == (50000, 32, 32, 3)
    assert images.labels[:4].tolist() == [6, 9, 9, 4]  # a frog, two trucks, a deer
    assert np.array_equal(np.bincount(images.labels), [5000] * 10)
    assert holds(images, [cifar10_bin / f"data_batch_{i}.bin" for i in range(1, 6)])


def test_cifar10_test_from_a_folder_and_from_the_gz_archive(cifar10_bin, tmp_path, offline):
    packed = tmp_path / "packed" / "cifar-10-binary.tar.gz"
    packed.parent.mkdir()
    pack = ["tar", "czf", packed, "-C", cifar10_bin.parent, "cifar-10-batches-bin/test_batch.bin"]
    subprocess.run(pack, check=True)
    for root in (cifar10_bin.parent, cifar10_bin, packed.parent):
        images = CIFAR10(root, tmp_path / "cache" / root.name, "test").load()
        assert images.images.shape == (10000, 32, 32, 3)
        assert holds(images, [cifar10_bin / "test_batch.bin"])


def test_mnist_reads_torchvisions_layout_unpacked(real_root, real_cache, tmp_path, offline):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (raw / name).write_bytes(gzip.decompress((real_root / "mnist" / f"{name}.gz").read_bytes()))
    assert MNIST(tmp_path, tmp_path, "test").load().sha256 == MNIST(real_root, real_cache, "test").load().sha256


@pytest.mark.parametrize("damage", ["truncated", "overwritten"])
def test_a_damaged_cifar10_archive_is_named_and_leaves_no_cache(real_root, tmp_path, offline, damage):
    content = bytearray((real_root / "cifar10" / "cifar-10-binary.tar.xz").read_bytes()[: 20 << 20])
    if damage == "overwritten":
        content[1 << 20 : (1 << 20) + 64] = bytes(64)
    path = tmp_path / "cifar10" / "cifar-10-binary.tar.xz"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UserError, match=r"cifar-10-binary\.tar\.xz is damaged or incomplete .*delete it"):
        CIFAR10(tmp_path, tmp_path / "cache").load()
    assert not [entry for entry in (tmp_path / "cache").iterdir() if not entry.name.endswith(".lock")]


@pytest.mark.parametrize("damage", [lambda b: b[:-1000], lambda b: b[:5000] + b"\0\0\0\0" + b[5004:], lambda b: b""])
def test_a_damaged_mnist_file_is_named_and_leaves_no_cache(real_root, tmp_path, offline, damage):
    for name in ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"):
        content = (real_root / "mnist" / name).read_bytes()
        (tmp_path / name).write_bytes(damage(content) if "images" in name else content)
    with pytest.raises(UserError, match=r"t10k-images-idx3-ubyte\.gz is damaged or incomplete .*delete it"):
        MNIST(tmp_path, tmp_path / "cache", "test").load()
    assert not [entry for entry in (tmp_path / "cache").iterdir() if not entry.name.endswith(".lock")]


def test_another_sets_files_are_not_mistaken_for_this_ones(real_root, tmp_path, offline):
    with pytest.raises(UserError, match="not the official file, by its md5"):
        FashionMNIST(real_root / "mnist", tmp_path, "test").load()
