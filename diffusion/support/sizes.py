"""The size of a picture, as a configuration says it: one number for a square, or [height, width]."""

from collections.abc import Sequence


def height_and_width(image_size: int | Sequence[int]) -> tuple[int, int]:
    """(height, width) in pixels of one number, the side of a square, or of [height, width].

    Raises ValueError unless it is one or two whole numbers of at least 1."""
    sides = tuple(image_size) if isinstance(image_size, Sequence) else (image_size, image_size)
    if len(sides) != 2 or not all(isinstance(side, int) and side >= 1 for side in sides):
        raise ValueError(f"image_size={image_size} is no size: say one number of pixels for a square, or [height,width].")
    return sides
