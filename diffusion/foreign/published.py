"""The layouts of others' files that are known: a file of weights becomes a model in our words."""

from collections.abc import Mapping
from pathlib import Path

from diffusion.foreign.converted import Converted
from diffusion.foreign.layouts import Layout, Published, found_among, tensors_in

LAYOUTS: tuple[Layout, ...] = ()


def read_file(file: Path, flags: Mapping[str, str]) -> Converted:
    """The model in a file of weights, of which `flags` says what the tensors do not.

    Raises UserError as `tensors_in`, `found_among` and the layout's reader do."""
    published = Published(file, tensors_in(file), flags)
    return found_among(LAYOUTS, published).read(published)
