"""All that is read of others: folders in diffusers' format, and files of weights in the layouts that are known."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from diffusion.foreign.converted import Converted
from diffusion.foreign.dit import DIT
from diffusion.foreign.edm import EDM_LAYOUTS, refuse_pickle
from diffusion.foreign.files import read_json
from diffusion.foreign.layouts import SUFFIXES, Layout, Weights, found_among, require_numbers, tensors_in
from diffusion.foreign.openai import OPENAI
from diffusion.foreign.pipelines import IN_A_FOLDER, INDEX, is_unet, pixel_model
from diffusion.foreign.pipelines import PIPELINES as PIXEL_PIPELINES
from diffusion.foreign.stable_diffusion import is_pipeline, stable_diffusion
from diffusion.foreign.unet2d import NAME
from diffusion.model import Model
from diffusion.support.errors import UserError

LAYOUTS: tuple[Layout, ...] = (IN_A_FOLDER, OPENAI, *EDM_LAYOUTS, DIT)
log = logging.getLogger(__name__)


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder in diffusers' format, of any kind."""
    return is_pipeline(path) or is_unet(path)


def folder_model(path: str | Path) -> Model:
    """The model of such a folder: of pixels, or Stable Diffusion's. Raises UserError for another kind, and one that is not complete."""
    if is_pixel(path):
        found = pixel_model(path)
        for note in found.origin["notes"]:
            log.warning("%s", note)
        return replace(found.model(), folder=Path(path))
    return stable_diffusion(path)


def is_pixel(path: str | Path) -> bool:
    """Whether there is a folder of a UNet2DModel, in a pipeline or alone."""
    if not is_pipeline(path):
        return is_unet(path)
    index = read_json(Path(path) / INDEX)
    unet = index.get("unet")
    return index.get("_class_name") in PIXEL_PIPELINES or (isinstance(unet, list) and unet[-1:] == [NAME])


def converted(path: Path, flags: Mapping[str, str]) -> Converted:
    """The model in a folder in diffusers' format, or in a file of weights, of which `flags` says what its tensors do not.

    Raises UserError for what is neither, for a layout that is not known, and as its reader does."""
    if is_folder(path):
        if flags:
            raise UserError(f"--{next(iter(flags))} is for a file of weights, and {path} has files that say how its network is built.")
        if not is_pixel(path):
            raise UserError(f"{path} is not of pixels: it is sampled as it is, by ckpt={path}, and of such folders {NAME}s are converted.")
        return pixel_model(path)
    if not path.exists():
        raise UserError(f"There is no {path}.")
    refuse_pickle(path)
    if path.suffix not in SUFFIXES or not path.is_file():
        raise UserError(f"{path} is no run, no folder in diffusers' format, and no file of weights ({', '.join(SUFFIXES)}).")
    published = Weights(path, tensors_in(path), flags)
    layout = found_among(LAYOUTS, published)
    require_numbers(path, published.tensors)
    try:
        return layout.read(published)
    except KeyError as error:
        raise UserError(f"{path} has the names of {layout.name}, and lacks {error}; it is not complete, or of another kind.") from error
    except (IndexError, ZeroDivisionError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else "nothing more"
        raise UserError(f"{path} has the names of {layout.name}, and not its shapes ({type(error).__name__}: {reason}).") from error
