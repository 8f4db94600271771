"""What is allowed and seldom meant."""

from collections.abc import Iterator

from diffusion.guidance.base import Guidance
from diffusion.typing import Codec, Denoise


def doubts(denoiser: Denoise, codec: Codec) -> Iterator[str]:
    """A sentence for each thing about a guided denoiser that does nothing, or harms, without a word."""
    stages: list[Guidance] = []
    while isinstance(denoiser, Guidance):
        stages.append(denoiser)
        denoiser = denoiser.denoiser
    for stage in stages:
        yield from stage.doubts(codec, any(other.limits for other in stages))
