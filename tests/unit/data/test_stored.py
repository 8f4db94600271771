"""Images as they lie in a folder, a zip or an npz: the same pixels by every way, and a sentence for what is none."""

import json
from zipfile import ZipFile

import numpy as np
import pytest
from PIL import Image

from diffusion.data import StoredImages
from diffusion.support.errors import UserError


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (7, 5, 6, 3), dtype=np.uint8)


def loaded(place, tmp_path):
    return StoredImages(root=place, cache=tmp_path / "cache").load()


def as_folder(folder, pixels):
    folder.mkdir(parents=True)
    for i, image in enumerate(pixels):
        Image.fromarray(image.squeeze()).save(folder / f"{i:03}.png")
    return folder


def as_zip(path, folder):
    with ZipFile(path, "w") as archive:
        archive.write(folder, "made/")
        archive.writestr("__MACOSX/._000.png", b"no picture")
        for file in folder.iterdir():
            archive.write(file, f"made/{file.name}")
    return path


@pytest.mark.parametrize("channels", [1, 3])
def test_every_form_gives_the_same_pixels(tmp_path, pixels, channels):
    pixels = pixels[..., :channels]
    folder = as_folder(tmp_path / "made", pixels)
    np.savez(tmp_path / "adm.npz", pixels)
    np.savez_compressed(tmp_path / "ours.npz", images=pixels if channels == 3 else pixels[..., 0])
    forms = [folder, as_zip(tmp_path / "made.zip", folder), tmp_path / "adm.npz", tmp_path / "ours.npz"]
    sets = [loaded(form, tmp_path) for form in forms]
    for found in sets:
        np.testing.assert_array_equal(found.images, pixels)
        assert found.labels is None and found.sha256 == sets[0].sha256


def test_one_colour_picture_makes_all_of_them_coloured(tmp_path, pixels):
    folder = as_folder(tmp_path / "made", pixels[:3, ..., 0])
    Image.fromarray(pixels[3]).save(folder / "003.png")
    found = loaded(folder, tmp_path).images
    assert found.shape == (4, 5, 6, 3)
    np.testing.assert_array_equal(found[0], pixels[0, ..., :1].repeat(3, -1))


def test_labels_of_an_npz(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", pixels, np.array([2, 0, 1, 2, 2, 0, 4]))
    found = loaded(tmp_path / "a.npz", tmp_path)
    assert found.labels.tolist() == [2, 0, 1, 2, 2, 0, 4] and found.num_classes == 5
    np.savez(tmp_path / "b.npz", pixels, np.array([0.5] * 7))  # conditions that are no classes
    assert loaded(tmp_path / "b.npz", tmp_path).labels is None


def test_an_npz_is_read_in_parts(tmp_path, pixels, monkeypatch):
    monkeypatch.setattr("diffusion.data.stored._BYTES", 2 * pixels[0].size + 1)
    np.savez(tmp_path / "a.npz", pixels, np.arange(7))
    parts = list(StoredImages(root=tmp_path / "a.npz").read()[1])
    assert [len(images) for images, _ in parts] == [2, 2, 2, 1]
    np.testing.assert_array_equal(np.concatenate([images for images, _ in parts]), pixels)
    assert np.concatenate([labels for _, labels in parts]).tolist() == list(range(7))


def test_a_folder_of_sample_py_is_its_npz(tmp_path, pixels):
    """Whose grid.png is no image of it."""
    folder = as_folder(tmp_path / "samples", pixels)
    Image.fromarray(pixels[0].repeat(3, 0)).save(folder / "grid.png")
    (folder / "recipe.json").write_text(json.dumps({}))
    np.savez(folder / "samples.npz", images=pixels[::-1])
    np.testing.assert_array_equal(loaded(folder, tmp_path).images, pixels[::-1])


def test_names_in_a_zip_may_be_spelt_oddly(tmp_path, pixels):
    """`./a`, `a//b`; of two of one name the last counts."""
    folder = as_folder(tmp_path / "made", pixels)
    with ZipFile(tmp_path / "x.zip", "w") as archive:
        for i, name in enumerate(("./0.png", "1/./1.png", "2//2.png", "2/2.png")):
            archive.write(folder / f"00{i}.png", name)
    np.testing.assert_array_equal(loaded(tmp_path / "x.zip", tmp_path).images, pixels[[0, 1, 3]])


def a_run(tmp_path, pixels):
    (tmp_path / "x" / "checkpoints").mkdir(parents=True)
    (tmp_path / "x" / "config.yaml").write_text("")
    return as_folder(tmp_path / "x" / "samples", pixels).parent, "is a run, and images are asked for: say ckpt="


def test_a_changed_file_is_read_again(tmp_path, pixels):
    np.savez(tmp_path / "a.npz", pixels)
    loaded(tmp_path / "a.npz", tmp_path)
    np.savez(tmp_path / "a.npz", pixels[:4])
    assert len(loaded(tmp_path / "a.npz", tmp_path)) == 4


def empty(tmp_path, pixels):
    (tmp_path / "x").mkdir()
    return tmp_path / "x", "holds no image"


def absent(tmp_path, pixels):
    return tmp_path / "x", "There is no file or folder"


def two_sizes(tmp_path, pixels):
    folder = as_folder(tmp_path / "x", pixels)
    Image.fromarray(pixels[0, :4]).save(folder / "odd.png")
    return folder, "are of several sizes: 000.png is 6x5 and odd.png 6x4"


def unreadable(tmp_path, pixels):
    folder = as_folder(tmp_path / "x", pixels)
    (folder / "002.png").write_bytes(b"text")
    (folder / "004.png").write_bytes((folder / "003.png").read_bytes()[:60])
    return folder, r"2 of the 7 images in .*002.png .*004.png"


def statistics(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", mu=np.zeros(3), sigma=np.eye(3))
    return tmp_path / "x.npz", "holds mu, sigma, and no images"


def floats(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", pixels / 255)
    return tmp_path / "x.npz", r"arr_0 .* is float64 \[7, 5, 6, 3\], and images are uint8"


def objects(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", np.array([pixels, None], dtype=object))
    return tmp_path / "x.npz", "arr_0 .* is object"


def channels_first(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", pixels.transpose(0, 3, 1, 2))
    return tmp_path / "x.npz", r"uint8 \[7, 3, 5, 6\], and images"


def cut_npz(tmp_path, pixels):
    np.savez(tmp_path / "x.npz", pixels)
    (tmp_path / "x.npz").write_bytes((tmp_path / "x.npz").read_bytes()[:200])
    return tmp_path / "x.npz", "cannot be read as an npz"


def no_zip(tmp_path, pixels):
    (tmp_path / "x.zip").write_bytes(b"text")
    return tmp_path / "x.zip", "cannot be read as a zip"


def another_file(tmp_path, pixels):
    (tmp_path / "x.pkl").write_bytes(b"text")
    return tmp_path / "x.pkl", "neither a folder, nor a .zip, nor a .npz"


CASES = [a_run, empty, absent, two_sizes, unreadable, statistics, floats, objects, channels_first, cut_npz, no_zip, another_file]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_what_is_no_set_of_images_is_a_sentence(tmp_path, pixels, case):
    place, sentence = case(tmp_path, pixels)
    with pytest.raises(UserError, match=sentence):
        loaded(place, tmp_path)


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_the_classes_that_edm_s_tool_writes(tmp_path, pixels, form):
    """Of sub-folders too; in the order of the names, which is not that of the file; null is none."""
    folder = as_folder(tmp_path / "set" / "a", pixels).parent
    names = [f"a/{i:03}.png" for i in range(7)]

    def written(labels):
        (folder / "dataset.json").write_text(json.dumps({"labels": labels}))
        if form == "folder":
            return folder
        with ZipFile(tmp_path / "set.zip", "w") as archive:
            for file in [folder / "dataset.json", *(folder / "a").iterdir()]:
                archive.write(file, file.relative_to(folder))
        return tmp_path / "set.zip"

    found = loaded(written([[name, (3 * i) % 5] for i, name in reversed([*enumerate(names)])]), tmp_path)
    assert found.labels.tolist() == [0, 3, 1, 4, 2, 0, 3] and found.num_classes == 5 and (found.images == pixels).all()
    assert loaded(written(None), tmp_path).labels is None
    for labels, said in (
        ([[name, 0] for name in names[:6]], "says the classes of 6 images, and none of a"),
        ([[name, -1] for name in names], "has -1 as a class"),
        ([[name, "dog"] for name in names], "has dog as a class"),
        ([3], r"it is to hold \{\"labels\""),
    ):
        with pytest.raises(UserError, match=said):
            loaded(written(labels), tmp_path)


def test_an_npz_without_images_or_with_classes_of_others(tmp_path, pixels):
    np.savez(tmp_path / "none.npz", arr_0=pixels[:0])
    np.savez(tmp_path / "few.npz", arr_0=pixels, arr_1=np.zeros(6, np.int64))
    for name, said in (("none", "arr_0 of .* holds no image"), ("few", "holds 7 images, and 6 classes in arr_1")):
        with pytest.raises(UserError, match=said):
            loaded(tmp_path / f"{name}.npz", tmp_path)
