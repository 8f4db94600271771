"""The Hugging Face hub: a model's folder from there, and to there (the extra `hub`). Configurations and weights are fetched, no code."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from diffusion.foreign.files import WEIGHTS
from diffusion.support.errors import UserError

PREFIX = "hub:"  # of a model's name, OWNER/NAME, where a folder may stand
FOLDERS = ("", "unet/", "scheduler/")  # of a model that hold what is read of it


def hub_name(place: str) -> str | None:
    """OWNER/NAME of hub:OWNER/NAME; None for a path. Raises UserError for what is no such name."""
    if not place.startswith(PREFIX):
        return None
    name = place.removeprefix(PREFIX)
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{place} is no model on the hub: say hub:OWNER/NAME.")
    return name


def pulled(name: str) -> Path:
    """The folder, in the hub's own cache, of a model of that name: the files that `needed` names. Raises UserError where the hub does not
    give them."""
    with asking(name) as hub:
        return Path(hub.snapshot_download(name, allow_patterns=needed(hub.HfApi().list_repo_files(name))))


def needed(files: Sequence[str]) -> list[str]:
    """Of a model's files those that are read: JSON, and in each folder the best file of weights."""
    data = [file for file in files if file.endswith(".json") and file[: file.rfind("/") + 1] in FOLDERS]
    best = [next((f"{folder}{name}" for name in WEIGHTS if f"{folder}{name}" in files), None) for folder in FOLDERS]
    return data + [file for file in best if file is not None]


def push(folder: Path, name: str, private: bool) -> str:
    """Give a folder to the hub under that name, made if it is not there, by the login that the hub's own command has kept; returns where it
    can be seen. Raises UserError where the hub does not take it."""
    with asking(name) as hub:
        api = hub.HfApi()
        place = api.create_repo(name, private=private, exist_ok=True)
        api.upload_folder(repo_id=name, folder_path=str(folder), commit_message="A model converted by diffusion")
        return str(place)


@contextmanager
def asking(name: str) -> Iterator[Any]:
    """huggingface_hub; what it raises is a UserError with its first line."""
    try:
        import huggingface_hub as hub
    except ImportError:
        raise UserError("The hub needs huggingface_hub: install it with pip install 'diffusion[hub]'.") from None
    try:
        yield hub
    except Exception as error:  # of the network, of names and of logins, in many kinds
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else "nothing more"
        raise UserError(f"The hub did not answer for {name} ({type(error).__name__}: {reason}).") from error
