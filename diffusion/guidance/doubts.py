"""What is allowed and seldom meant."""

from collections.abc import Iterator

from diffusion.guidance.base import Guidance
from diffusion.guidance.contrast import CFGPlusPlus, ClassifierFree
from diffusion.guidance.correct import Clip, Rescale
from diffusion.typing import Codec, Denoise


def doubts(denoiser: Denoise, codec: Codec) -> Iterator[str]:
    """A sentence for each thing about a guided denoiser that does nothing, or harms, without a word."""
    stages: list[Guidance] = []
    while isinstance(denoiser, Guidance):
        stages.append(denoiser)
        denoiser = denoiser.denoiser
    limited = any(isinstance(stage, Clip | Rescale) for stage in stages)
    for stage in stages:
        if not isinstance(stage, ClassifierFree) or isinstance(stage, CFGPlusPlus):
            continue
        if stage.scale == 1 and stage.negative is not None:
            yield f"guidance.negative={stage.negative} does nothing at guidance.scale=1, the conditional model alone; raise it."
        if stage.scale > 1 and codec.range is not None and not limited:
            yield f"guidance.scale={stage.scale} takes x_0 out of the data's range, and nothing clips it: say guidance=[cfg,clip]."
