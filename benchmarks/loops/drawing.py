"""One batch of images from noise in a process of its own, and the memory that it took: `... drawing WHO JSON`."""

import json
import sys
from pathlib import Path

from ..harness import Absent
from ..process import absent
from ..turns import peak


def main() -> None:
    who, given = sys.argv[1], json.loads(sys.argv[2])
    try:
        draw, imported = MAKERS[who](given)
    except Absent as error:
        absent(error)
    draw()
    print(json.dumps(peak(given["device"]) | {"imported, GiB": imported}))


def ours(given):  # type: ignore[no-untyped-def]
    """This project's recipe, in a process that keeps the memory it frees, as sample.py's does."""
    from diffusion.support.host import keep_freed_memory

    from ..rows import sampling

    if given["device"] == "cpu":
        keep_freed_memory()
    return made(given, sampling.ours, "32-true")


def diffusers(given):  # type: ignore[no-untyped-def]
    """diffusers' pipeline."""
    from ..harness import missing
    from ..rows import sampling

    with missing("diffusers"):  # before the memory is counted
        from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel  # noqa: F401

    return made(given, sampling.diffusers, "fp32")


def made(given, maker, precision):  # type: ignore[no-untyped-def]
    """What draws, and the memory before it was made."""
    from dataclasses import replace

    from .. import sizes
    from ..rows import sampling
    from ..work import Bench

    bench = Bench(given["device"], replace(sizes.CPU, image_size=given["image_size"]), Path())
    method = replace(sampling.methods(bench)[0], steps=2, batch=given["batch"], width=given["channels"])
    imported = peak("cpu")["resident, GiB"]
    return maker(bench, method, precision), imported


def lucidrains(given):  # type: ignore[no-untyped-def]
    """denoising-diffusion-pytorch's DDIM."""
    from ..harness import missing

    with missing("denoising-diffusion-pytorch"):
        from denoising_diffusion_pytorch import GaussianDiffusion

    from .. import networks

    imported = peak("cpu")["resident, GiB"]
    network = networks.lucidrains(given["lucidrains"])
    diffusion = GaussianDiffusion(network, image_size=given["image_size"], timesteps=1000, sampling_timesteps=2).to(given["device"]).eval()
    return (lambda: diffusion.sample(batch_size=given["batch"])), imported


MAKERS = {"ours": ours, "diffusers": diffusers, "lucidrains": lucidrains}

if __name__ == "__main__":
    main()
