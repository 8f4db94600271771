"""The hub, with a local folder in its place: what is asked for, and what is given."""

import shutil
from pathlib import Path

import pytest
from pixel_folders import pipeline

from diffusion.convert import write_as
from diffusion.foreign.hub import hub_name, needed
from diffusion.support.errors import UserError

hub = pytest.importorskip("huggingface_hub")
pytest.importorskip("diffusers")
pytestmark = pytest.mark.xdist_group("foreign")


class LocalHub:
    """In the place of the hub: a folder for each model, and a list of what was asked."""

    def __init__(self, root: Path) -> None:
        self.root, self.asked = root, []

    def list_repo_files(self, name):
        if not (self.root / name).is_dir():
            raise OSError(f"404 for {name}\nand more lines")
        return sorted(file.relative_to(self.root / name).as_posix() for file in (self.root / name).rglob("*") if file.is_file())

    def snapshot_download(self, name, allow_patterns):
        self.asked.append((name, allow_patterns))
        target = self.root / "cache" / name
        for file in hub.utils.filter_repo_objects(self.list_repo_files(name), allow_patterns=allow_patterns):
            (target / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(self.root / name / file, target / file)
        return str(target)

    def create_repo(self, name, private, exist_ok):
        assert exist_ok
        self.asked.append((name, private))
        (self.root / name).mkdir(parents=True, exist_ok=True)
        return f"https://hub/{name}"

    def upload_folder(self, repo_id, folder_path, commit_message):
        shutil.copytree(folder_path, self.root / repo_id, dirs_exist_ok=True)


@pytest.fixture
def local(tmp_path, monkeypatch):
    made = LocalHub(tmp_path / "hub")
    for name in ("list_repo_files", "create_repo", "upload_folder"):
        monkeypatch.setattr(hub.HfApi, name, staticmethod(getattr(made, name)))
    monkeypatch.setattr(hub, "snapshot_download", made.snapshot_download)
    return made


def test_a_model_is_pulled_and_pushed(local, tmp_path):
    """No code of it is fetched, and its pickles only where there is no other file of weights."""
    folder = pipeline(local.root / "someone" / "model")
    (folder / "pipeline.py").write_text("raise SystemExit")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"")
    write_as("hub:someone/model", str(tmp_path / "run"))
    data = ["model_index.json", "scheduler/scheduler_config.json", "unet/config.json"]
    assert local.asked == [("someone/model", [*data, "unet/diffusion_pytorch_model.safetensors"])]
    fetched = {file.name for file in (local.root / "cache").rglob("*") if file.is_file()}
    assert fetched == {"model_index.json", "config.json", "scheduler_config.json", "diffusion_pytorch_model.safetensors"}
    assert write_as(str(tmp_path / "run"), "hub:me/mine", private=True) == "https://hub/me/mine"
    assert local.asked[1] == ("me/mine", True)
    assert (local.root / "me/mine/README.md").read_text().startswith("---\nlibrary_name: diffusers\nlicense: unknown\n")
    write_as("hub:me/mine", str(tmp_path / "again"))
    again, before = ((tmp_path / name / "checkpoints" / "last.ckpt").stat().st_size for name in ("again", "run"))
    assert again == before


def test_a_model_that_is_not_there(local, tmp_path):
    with pytest.raises(UserError, match=r"The hub did not answer for some/one \(OSError: 404 for some/one\)\.$"):
        write_as("hub:some/one", str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["hub:", "hub:name", "hub:/name", "hub:a/b/c"])
def test_a_name_that_is_none(place):
    with pytest.raises(UserError, match="say hub:OWNER/NAME"):
        hub_name(place)


def test_without_the_package(monkeypatch, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"pip install 'diffusion\[hub\]'"):
        write_as("hub:some/one", str(tmp_path / "run"))


@pytest.mark.parametrize(
    ("ends", "taken"),
    [
        ([".bin", ".fp16.bin", ".fp16.safetensors", ".safetensors"], ".safetensors"),
        ([".bin", ".fp16.safetensors"], ".bin"),
        ([".fp16.safetensors", ".fp16.bin"], ".fp16.safetensors"),
    ],
)
def test_what_is_fetched(ends, taken):
    """One file of weights, of whole precision if there is one, and nothing of other parts."""
    stem = "unet/diffusion_pytorch_model"
    more = ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "unet/logs/a.json", "README.md", "unet/code.py"]
    assert needed(["model_index.json", "unet/config.json", *more, *(stem + end for end in ends)]) == [
        "model_index.json",
        "unet/config.json",
        stem + taken,
    ]
