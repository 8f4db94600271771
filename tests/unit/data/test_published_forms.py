"""CelebA and downsampled ImageNet: readers, on a few files in exactly the published form."""

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import functional as theirs

from diffusion.data import CelebA, DownsampledImageNet
from diffusion.support.errors import UserError

NAMES = [f"{i:06d}.jpg" for i in range(1, 8)]
SPLIT = dict(zip(NAMES, [0, 0, 1, 0, 2, 2, 0], strict=True))
SMILING = dict(zip(NAMES, [1, -1, 1, 1, -1, 1, -1], strict=True))
COLUMNS = [f"Attribute_{i}" for i in range(31)] + ["Smiling"] + [f"Attribute_{i}" for i in range(32, 40)]


@pytest.fixture(scope="module")
def faces(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    folder = root / "celeba" / "img_align_celeba"
    folder.mkdir(parents=True)
    for i, name in enumerate(NAMES):
        noise = np.random.default_rng(i).integers(0, 256, (27, 22, 3), dtype=np.uint8)
        Image.fromarray(noise).resize((178, 218), Image.Resampling.BICUBIC).save(folder / name)
    (root / "celeba" / "list_eval_partition.txt").write_text("".join(f"{name} {split}\n" for name, split in SPLIT.items()))
    rows = [f"{name} {' '.join(['-1'] * 31)} {SMILING[name]:2d} {' '.join([' 1'] * 8)}\n" for name in NAMES]
    (root / "celeba" / "list_attr_celeba.txt").write_text(f"{len(NAMES)}\n{' '.join(COLUMNS)} \n{''.join(rows)}")
    return root


def square(path, corner, side):
    """What DDIM's code does with Torchvision: crop, then Resize of a Pillow image."""
    return np.asarray(theirs.resize(theirs.crop(Image.open(path), *corner, side, side), 64))


def test_faces_are_cut_as_ddim_does(faces, tmp_path):
    for number, split in enumerate(CelebA.splits):
        images = CelebA(faces, tmp_path, split=split).load()
        names = [name for name in NAMES if SPLIT[name] == number]
        assert len(images) == len(names) and images.labels is None
        for image, name in zip(images.images, names, strict=True):
            assert np.array_equal(image, square(faces / "celeba" / "img_align_celeba" / name, (121 - 64, 89 - 64), 128))


def test_another_square(faces, tmp_path):
    """NCSN's: Torchvision's CenterCrop(140), which has the same corner."""
    images = CelebA(faces / "celeba", tmp_path, crop=140, centre=[109, 89]).load().images
    for image, name in zip(images, [name for name in NAMES if SPLIT[name] == 0], strict=True):
        picture = Image.open(faces / "celeba" / "img_align_celeba" / name)
        assert np.array_equal(image, np.asarray(theirs.resize(theirs.center_crop(picture, 140), 64)))


def test_an_attribute_is_a_class(faces, tmp_path):
    images = CelebA(faces, tmp_path, attribute="Smiling").load()
    assert images.num_classes == 2 and images.labels.tolist() == [int(SMILING[name] == 1) for name in NAMES if SPLIT[name] == 0]
    with pytest.raises(UserError, match=r"CelebA has no attribute Laughing: say dataset\.attribute=Attribute_0\|"):
        CelebA(faces, tmp_path, attribute="Laughing").load()


@pytest.mark.parametrize("words", [{"crop": 180}, {"centre": [63, 89]}, {"centre": [121, 120]}, {"centre": [121]}])
def test_a_square_outside_is_refused(words):
    with pytest.raises(UserError, match=r"dataset\.crop=\d+ about dataset\.centre=\[[\d, ]+\] is not within 218 rows and 178 columns"):
        CelebA(**words)


def test_what_is_wrong_with_faces_is_one_sentence(faces, tmp_path):
    with pytest.raises(UserError, match=r"list_eval_partition\.txt and the folder img_align_celeba are not in .*dataset\.root"):
        CelebA(tmp_path / "nowhere", tmp_path).load()
    root = tmp_path / "faces"
    (root / "img_align_celeba").mkdir(parents=True)
    Image.new("RGB", (64, 64)).save(root / "img_align_celeba" / "000001.jpg")
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg 0\n")
    with pytest.raises(UserError, match=r"2 of the 2 images .*000001\.jpg \(it has 64x64 .*not 178x218\); 000002\.jpg \(there is no"):
        CelebA(root, tmp_path).load()
    (root / "list_eval_partition.txt").write_text("000001.jpg 0\n000002.jpg\n")
    with pytest.raises(UserError, match=r"Line 2 of list_eval_partition\.txt in .* has not 2 words"):
        CelebA(root, tmp_path).load()
    with pytest.raises(UserError, match=r"list_attr_celeba\.txt in .* cannot be read"):
        (root / "list_eval_partition.txt").write_text("000001.jpg 0\n")
        CelebA(root, tmp_path, attribute="Smiling").load()


def pictures(seed: int, n: int, side: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, side, side, 3), dtype=np.uint8)


def write(file, images: np.ndarray, labels, **others) -> None:
    planes = np.stack([images[..., channel].reshape(len(images), -1) for channel in range(3)], 1)  # red, then green, then blue
    np.savez(file, data=planes.reshape(len(images), -1), labels=labels, **others)


@pytest.mark.parametrize(("side", "inside"), [(64, "imagenet64"), (32, ".")])
def test_imagenet_batches(tmp_path, side, inside):
    root = tmp_path / "data" / inside
    root.mkdir(parents=True)
    for i in range(1, 11):
        write(root / f"train_data_batch_{i}.npz", pictures(i, 2, side), np.array([i, 1000]), mean=np.zeros(3 * side**2))
    write(root / "val_data.npz", pictures(0, 3, side), [5, 1, 1000])
    train = DownsampledImageNet(tmp_path / "data", tmp_path / "cache", image_size=side).load()
    assert np.array_equal(train.images, np.concatenate([pictures(i, 2, side) for i in range(1, 11)]))
    assert train.labels.tolist() == [label for i in range(1, 11) for label in (i - 1, 999)] and train.num_classes == 1000
    val = DownsampledImageNet(tmp_path / "data", tmp_path / "cache", image_size=side, split="val").load()
    assert np.array_equal(val.images, pictures(0, 3, side)) and val.labels.tolist() == [4, 0, 999]


def test_what_is_wrong_with_imagenet_is_one_sentence(tmp_path):
    def load(**words):
        DownsampledImageNet(tmp_path, tmp_path / "cache", **{"image_size": 32, "split": "val", **words}).load()

    with pytest.raises(UserError, match=r"train_data_batch_1\.npz, .*train_data_batch_10\.npz of downsampled_imagenet is not in .*32x32"):
        load(split="train")
    write(tmp_path / "val_data.npz", pictures(0, 3, 32), [1, 2, 3])
    with pytest.raises(UserError, match=r"holds uint8 \[3, 3072\], and not uint8 \[3, 12288\]: say dataset\.image_size"):
        load(image_size=64)
    write(tmp_path / "val_data.npz", pictures(0, 3, 32), [0, 2, 3])
    with pytest.raises(UserError, match=r"labels that do not fit its 1000 classes"):
        load()
    np.savez(tmp_path / "val_data.npz", data=np.array([{}]), labels=[1])
    with pytest.raises(UserError, match=r"val_data\.npz cannot be read \(Object arrays cannot be loaded"):
        load()
    content = (tmp_path / "val_data.npz").read_bytes()
    (tmp_path / "val_data.npz").write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match=r"val_data\.npz cannot be read \(.*bring an undamaged copy"):
        load()
