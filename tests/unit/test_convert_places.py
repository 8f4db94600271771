"""Where diffusion.convert writes, and where it does not: one sentence, and every file and link as it was."""

import os
import shutil

import pytest
from composing import TINY, composed
from pixel_folders import pipe_and_run

from diffusion.convert import write_as, write_run
from diffusion.model import assemble
from diffusion.support.errors import UserError

pytest.importorskip("diffusers")
pytestmark = pytest.mark.xdist_group("foreign")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return pipe_and_run(tmp_path_factory.mktemp("places"))


def everything(folder):
    """What lies below a folder, links as links."""
    return {entry: os.readlink(entry) if entry.is_symlink() else entry.is_file() and entry.read_bytes() for entry in folder.rglob("*")}


@pytest.mark.parametrize("kind", ["folder", "file", "nowhere", "a run of ours"])
@pytest.mark.parametrize("name", ["link", "link.safetensors"])
def test_a_link_is_not_replaced(place, tmp_path, name, kind):
    """Whatever it leads to: the link would be gone, and what it leads to as it was."""
    there = tmp_path / "there"
    {"folder": there.mkdir, "file": there.touch, "a run of ours": lambda: shutil.copytree(place / "run", there)}.get(kind, bool)()
    (tmp_path / name).symlink_to(there)
    before = everything(tmp_path)
    with pytest.raises(UserError, match=f"{name} is a link to .*there, and only the link would be replaced"):
        write_as(str(place / "pipe"), str(tmp_path / name))
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("pipe/run", "lies in what is read"),
        ("pipe/unet/a/b.safetensors", "lies in what is read"),
        ("file/run", "TO=.*file cannot be written to .Not a directory."),
        ("file/a/b.safetensors", "cannot be written to .Not a directory."),
        ("nowhere/run", "cannot be written to"),
        ("loop/run", "cannot be written to"),
        ("/proc/run", "TO=/proc cannot be written to"),
        ("/proc/a/b.safetensors", "TO=/proc/a cannot be written to"),
        ("/dev/null", "is there already"),
    ],
)
def test_a_place_that_cannot_be_written(place, tmp_path, target, said):
    """Below a file, a link to nowhere, or where nothing can be made: nothing is read for it."""
    shutil.copytree(place / "pipe", tmp_path / "pipe")
    (tmp_path / "file").write_text("mine")
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    before = everything(tmp_path)
    with pytest.raises(UserError, match=said) as told:
        write_as(str(tmp_path / "pipe"), str(tmp_path / target))
    assert everything(tmp_path) == before and "\n" not in str(told.value)


def test_a_run_is_not_written_into_itself(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    before = everything(tmp_path)
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        with pytest.raises(UserError, match=r"lies in what is read, which stays as it is: give a place outside of .*run\.$"):
            write_as(str(source), str(tmp_path / "run" / "checkpoints" / "weights.safetensors"))
    assert everything(tmp_path) == before


def test_folders_that_were_made_for_nothing_go_again(tmp_path):
    """A run that diffusers has no counterpart of is refused when it is written."""
    config = composed(*TINY)
    config["codec"]["data_shape"], config["conditions"]["num_classes"] = [8, 8, 1], 4
    write_run(assemble(config), {"name": "ours"}, tmp_path / "ours")
    (tmp_path / "ours" / "diffusion.json").write_text('{"origin": {"notes": []}}')
    (tmp_path / "kept").mkdir()
    before = everything(tmp_path)
    with pytest.raises(UserError, match=r"groups, by their widths|no counterpart"):
        write_as(str(tmp_path / "ours"), str(tmp_path / "kept" / "a" / "b"))
    assert everything(tmp_path) == before


@pytest.mark.parametrize(
    ("mark", "said"),
    [('{"origin": "mine"}', "origin=mine, which should be of type dict"), ('{"origin": {"notes": 3}}', "notes=3, which should be of type")],
)
def test_where_a_run_is_from_is_damaged(place, tmp_path, mark, said):
    shutil.copytree(place / "run", tmp_path / "run")
    (tmp_path / "run" / "diffusion.json").write_text(mark)
    with pytest.raises(UserError, match=said):
        write_as(str(tmp_path / "run"), str(tmp_path / "there"))
    assert not (tmp_path / "there").exists()
