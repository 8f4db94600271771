"""Checkpoints that two processes write parts of: whole or absent, and never of two saves at once."""

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from processes import two_ranks

from diffusion.checkpoint import read, read_checkpoint, write_checkpoint
from diffusion.shards import tidy
from diffusion.support.errors import UserError

# Each rank saves steps 1, 2 and 3 of a tensor of 5 rows (3 of one, 2 of the other), in the place of the one before, which is kept; the disk
# of the other is full at step 3, and then all is well again where the folder is named so.
WORKER = """
import errno, json, os, signal, sys
from pathlib import Path
import torch, torch.distributed as dist
import diffusion.shards as shards
from diffusion.checkpoint import write_together

rank, rendezvous, folder, output = sys.argv[1:]
rank, file = int(rank), Path(folder) / "checkpoints" / "last.ckpt"
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
said, write_part = [], shards.write_part

def save(step):
    whole = torch.arange(10.0).reshape(5, 2) + step
    rows = whole[:3] if rank == 0 else whole[3:]
    content = {"global_step": step, "state_dict": {"w": shards.Shard(rows, (5, 2)), "b": torch.ones(3) * step}, "list": [1, {"x": None}]}
    content["ema"] = {"shadow": {}}
    try:
        write_together(content, file, file.with_name("previous.ckpt"))
        said.append("saved")
    except OSError as error:
        said.append(str(error))

def full(rows, part):
    if rank == 1:
        part.parent.mkdir(parents=True, exist_ok=True)
        (part.parent / ".0001.ckpt.x.tmp").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(part))
    return write_part(rows, part)

save(1)
save(2)
shards.write_part = full
save(3)
shards.write_part = write_part
if sys.argv[3].endswith("well"):
    save(4)
open(output, "w").write(json.dumps(said))
"""


def saved(folder: Path) -> tuple[Path, list[list[str]]]:
    return folder, two_ranks(WORKER, folder.parent, str(folder))


@pytest.fixture(scope="module")
def full(tmp_path_factory):
    return saved(tmp_path_factory.mktemp("full") / "run")


def config(folder: Path) -> Path:
    (folder / "config.yaml").write_text("{}")
    return folder


def expected(step: int) -> torch.Tensor:
    return torch.arange(10.0).reshape(5, 2) + step


@pytest.mark.xdist_group("shards")
def test_a_full_disk_of_one_is_an_error_of_both_and_loses_nothing(full):
    """Neither waits for the other."""
    folder, (first, other) = full
    assert first[:2] == other[:2] == ["saved", "saved"]
    assert "No space left" in other[2] and first[2].startswith("process 1: ") and "No space left" in first[2]
    content = read_checkpoint(folder / "checkpoints/last.ckpt")
    assert (
        content["global_step"] == 2 and content["list"] == [1, {"x": None}] and set(content) == {"global_step", "state_dict", "list", "ema"}
    )
    assert torch.equal(content["state_dict"]["w"], expected(2)) and torch.equal(content["state_dict"]["b"], torch.full((3,), 2.0))
    assert torch.equal(read_checkpoint(folder / "checkpoints/previous.ckpt")["state_dict"]["w"], expected(1))


@pytest.mark.xdist_group("shards")
def test_what_was_left_goes_with_the_next(tmp_path):
    """The parts of the failed save, and those of the first, whose checkpoint is no more."""
    folder, said = saved(tmp_path / "well")
    assert [words[3] for words in said] == ["saved", "saved"]
    checkpoints = folder / "checkpoints"
    assert [read_checkpoint(checkpoints / name)["global_step"] for name in ("last.ckpt", "previous.ckpt")] == [4, 2]
    assert len(list((checkpoints / "shards").iterdir())) == 2 and not list(checkpoints.glob("**/*.tmp"))


DAMAGES = {
    "a bit": ("is damaged: its content is not what", lambda part: flipped(part)),
    "cut off": ("0001.ckpt", lambda part: part.write_bytes(part.read_bytes()[:-100])),
    "gone": ("is missing: they belong together", lambda part: part.unlink()),
    "of another save": ("is damaged: its content is not what", lambda part: shutil.copy(other_save(part), part)),
    "of the other process": ("is damaged: its content is not what", lambda part: shutil.copy(part.with_name("0000.ckpt"), part)),
}


def flipped(part: Path) -> None:
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 1
    part.write_bytes(content)


def other_save(part: Path) -> Path:
    (other,) = {path for path in part.parent.parent.iterdir() if (path / part.name).exists()} - {part.parent}
    return other / part.name


@pytest.mark.xdist_group("shards")
@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_part(full, tmp_path, damage, caplog):
    """In a sentence where the checkpoint is named; of a run's folder the one before is used, with a warning."""
    folder = config(shutil.copytree(full[0], tmp_path / "run"))
    file = folder / "checkpoints/last.ckpt"
    name = torch.load(file, weights_only=True)["shards"]["name"]
    said, do = DAMAGES[damage]
    do(file.parent / "shards" / name / "0001.ckpt")
    with pytest.raises(UserError, match=said):
        read_checkpoint(file)
    with pytest.raises(UserError, match="The one before it is"):
        read(file)
    found, content = read(folder)
    assert found.name == "previous.ckpt" and content["global_step"] == 1 and "the one before is used" in caplog.text


@pytest.mark.xdist_group("shards")
def test_places_of_others_are_not_read(full, tmp_path):
    """A file from elsewhere names its parts by itself."""
    folder = shutil.copytree(full[0], tmp_path / "run")
    file = folder / "checkpoints/last.ckpt"
    content = torch.load(file, weights_only=True)
    for name in ("../../../other", "/etc", "0123", 5):
        write_checkpoint(content | {"shards": {"name": name, "seals": content["shards"]["seals"]}}, file)
        with pytest.raises(UserError, match="damaged"):
            read_checkpoint(file)


@pytest.mark.xdist_group("shards")
def test_nothing_is_removed_that_a_damaged_file_may_name(full, tmp_path):
    """Nor what is not ours."""
    folder = shutil.copytree(full[0], tmp_path / "run") / "checkpoints"
    (folder / "shards" / "mine").mkdir()
    before = sorted(path.name for path in (folder / "shards").iterdir())
    (folder / "best.ckpt").write_bytes(b"PK broken")
    tidy(folder)
    assert sorted(path.name for path in (folder / "shards").iterdir()) == before
    (folder / "best.ckpt").unlink()
    tidy(folder)
    kept = {torch.load(folder / name, weights_only=True)["shards"]["name"] for name in ("last.ckpt", "previous.ckpt")}
    assert {path.name for path in (folder / "shards").iterdir()} == {*kept, "mine"}


@pytest.mark.xdist_group("shards")
def test_one_file_in_its_place(full, tmp_path):
    """A run that goes on in one process: its checkpoints are of one file, and the parts go when none names them."""
    file = shutil.copytree(full[0], tmp_path / "run") / "checkpoints/last.ckpt"
    for step in (5, 6):
        write_checkpoint({"global_step": step}, file, keep=file.with_name("previous.ckpt"))
    tidy(file.parent)
    assert read_checkpoint(file) == {"global_step": 6} and not (file.parent / "shards").exists()
    assert json.dumps(sorted(os.listdir(file.parent))) == '["last.ckpt", "previous.ckpt"]'
