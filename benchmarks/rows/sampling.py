"""Sampling: images from noise in steady state, by the recipe that sample.py calls, against diffusers' pipelines and k-diffusion's function;
and what a sampler costs beside its network.

The networks have one shape and random weights, and a round makes a batch of images. Guided, each step calls the network on both halves in
one batch, here and there. DDIM and DDPM clip x_0, as diffusers' do unless told otherwise, DPM++ 2M does not."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion.codecs import Pixels
from diffusion.conditions import Classes, Unconditional
from diffusion.denoiser import Denoiser
from diffusion.generate import Recipe
from diffusion.grids import Leading, Linspace
from diffusion.guidance import ClassifierFree, Clip
from diffusion.model import Model
from diffusion.parameterization import Epsilon
from diffusion.samplers import DDIM, DDPM, DPMPP2M
from diffusion.schedules import Linear
from diffusion.support.devices import laid_out

from .. import networks
from ..harness import OURS, Ratio, Row, Side, missing
from ..work import Bench

CLASSES, SCALE = 10, 2.0
BEST = "bf16-true"
GRAPHS = f"ours {BEST}, graphs"


@dataclass(frozen=True)
class Method:
    """A sampler of ours with its grid, what diffusers calls the scheduler and, if it has one, the pipeline, and whether x_0 is clipped."""

    name: str
    sampler: Any
    grid: Any
    scheduler: str
    pipeline: str | None
    clipped: bool
    steps: int
    guided: bool = False
    width: int = 32
    batch: int = 8


def methods(bench: Bench) -> list[Method]:
    """The three, at this size."""
    s = bench.sizes
    size = {"width": s.width, "batch": s.batch}
    return [
        Method("ddim", DDIM(), Leading, "DDIMScheduler", "DDIMPipeline", True, s.drawn[0], **size),
        Method("ddpm", DDPM(), Leading, "DDPMScheduler", "DDPMPipeline", True, s.drawn[1], width=s.width, batch=s.long),
        Method("dpmpp-2m", DPMPP2M(), Linspace, "DPMSolverMultistepScheduler", None, False, s.drawn[2], **size),
    ]


def rows(bench: Bench) -> list[Row]:
    """Each method without and with guidance, and its own arithmetic."""
    made = [row(bench, replace(method, guided=guided)) for method in methods(bench) for guided in (False, True)]
    return made + [arithmetic(bench, method) for method in methods(bench)]


def row(bench: Bench, method: Method) -> Row:
    """One method."""
    sides = [
        Side(OURS, partial(drawing, bench, method, ours, "32-true"), needed=True),
        Side(f"ours {BEST}", partial(drawing, bench, method, ours, BEST)),
        Side("diffusers", partial(drawing, bench, method, diffusers, "fp32")),
        Side("diffusers bf16", partial(drawing, bench, method, diffusers, "bf16")),
    ]
    ratios = [
        Ratio(f"diffusers / ours {BEST}", "diffusers", f"ours {BEST}", {"cpu": ">= 1.3"}),
        Ratio("diffusers / ours, both fp32", "diffusers", OURS, {"cpu": ">= 1"}),
        Ratio("diffusers / ours, both bf16", "diffusers bf16", f"ours {BEST}", {"cpu": ">= 1", "cuda": ">= 2"}),
    ]
    if bench.device == "cuda":
        sides.append(Side(GRAPHS, partial(drawing, bench, method, partial(ours, graphs=True), BEST)))
        ratios.append(Ratio(f"ours {BEST} / {GRAPHS}", f"ours {BEST}", GRAPHS))
        ratios.append(Ratio(f"diffusers bf16 / {GRAPHS}", "diffusers bf16", GRAPHS, {"cuda": ">= 2"}))
    if method.name == "dpmpp-2m":
        sides.append(Side("k-diffusion", partial(drawing, bench, method, k_diffusion, "fp32")))
        ratios.append(Ratio("k-diffusion / ours, both fp32", "k-diffusion", OURS, {"cpu": ">= 1", "cuda": ">= 1"}))
    guided = "-guided" if method.guided else ""
    what = f"{type(method.sampler).__name__}, {method.steps} steps, {method.batch} images, width {method.width}"
    what += ", guided, both halves in a batch" if method.guided else ""
    return Row(f"sampling-{method.name}{guided}", what, "s/image", tuple(sides), tuple(ratios))


@contextmanager
def drawing(bench: Bench, method: Method, make: Callable, precision: str, side: Side) -> Iterator[Callable[[], float]]:
    """A side that makes a batch of images a round, after one to warm up."""
    draw = make(bench, method, precision)
    side.facts |= {"precision": precision, "threads": torch.get_num_threads()}
    draw()
    yield lambda: bench.seconds(draw) / method.batch


def recipe(bench: Bench, method: Method, network: nn.Module, precision: str, graphs: bool = False) -> Recipe:
    """What sample.py makes of a run with this network."""
    size = bench.sizes.image_size
    conditions = Classes(CLASSES) if method.guided else Unconditional()
    denoiser = Denoiser(network, Linear(), Epsilon()).eval()
    model = Model(denoiser, Pixels([size, size, 3]), conditions).to(bench.device, precision)
    stages = [partial(ClassifierFree, scale=SCALE)] * method.guided + [Clip] * method.clipped
    return model.recipe(method.sampler, method.grid(method.steps), stages, batch_size=method.batch, precision=precision, graphs=graphs)


def ours(bench: Bench, method: Method, precision: str, graphs: bool = False) -> Callable[[], Any]:
    """As sample.py: a seed and a condition for each image, uint8 images on the CPU."""
    torch.manual_seed(0)
    network = networks.ours(method.width, bench.sizes.image_size, num_classes=CLASSES if method.guided else 0)
    made = recipe(bench, method, network, precision, graphs)
    cond = made.conditions.ask(torch.arange(method.batch)) if method.guided else None
    return lambda: made(range(method.batch), cond)


def diffusers(bench: Bench, method: Method, precision: str) -> Callable[[], Any]:
    """Its pipeline where there is one, and otherwise (guided, or with weights in bfloat16) the loop of its documentation."""
    with missing("diffusers"):
        import diffusers as package

    kind = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    network = networks.diffusers(method.width, bench.sizes.image_size, num_classes=CLASSES if method.guided else 0)
    network = network.to(bench.device, kind).eval()
    scheduler = getattr(package, method.scheduler)()
    generator = torch.Generator(bench.device).manual_seed(0)
    if method.pipeline and not method.guided and precision == "fp32":  # it makes arrays of numpy, which has no bfloat16
        pipeline = getattr(package, method.pipeline)(network, scheduler)
        pipeline.set_progress_bar_config(disable=True)
        return lambda: pipeline(batch_size=method.batch, generator=generator, num_inference_steps=method.steps, output_type="np").images
    return partial(documented, bench, method, scheduler, epsilon(network, method, bench.device), kind, generator)


def epsilon(network: nn.Module, method: Method, device: str) -> Callable[[Tensor, Tensor], Tensor]:
    """The network's output (x, t), guided as diffusers' pipelines are: conditional and unconditional halves of one batch."""
    if not method.guided:
        return lambda x, t: network(x, t).sample
    labels = torch.cat([torch.arange(method.batch) % CLASSES, torch.full((method.batch,), CLASSES)]).to(device)

    def guided(x: Tensor, t: Tensor) -> Tensor:
        both = torch.cat([x, x])
        given = t if t.ndim == 0 else torch.cat([t, t])
        cond, null = network(both, given, class_labels=labels).sample.chunk(2)
        return null + SCALE * (cond - null)

    return guided


@torch.no_grad()
def documented(bench: Bench, method: Method, scheduler: Any, eps: Callable, kind: torch.dtype, generator: torch.Generator) -> Tensor:
    """The loop of diffusers' documentation over a network and a scheduler, to uint8 images on the CPU."""
    size = bench.sizes.image_size
    scheduler.set_timesteps(method.steps, device=bench.device)
    x = torch.randn(method.batch, 3, size, size, generator=generator, device=bench.device, dtype=kind) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        x = scheduler.step(eps(scheduler.scale_model_input(x, t), t), t, x, generator=generator).prev_sample
    return eight_bits(x)


def k_diffusion(bench: Bench, method: Method, precision: str) -> Callable[[], Any]:
    """Its function around a wrapped network, of diffusers' shape."""
    with missing("k-diffusion"):
        from k_diffusion.external import DiscreteEpsDDPMDenoiser
        from k_diffusion.sampling import sample_dpmpp_2m

    size, device = bench.sizes.image_size, bench.device
    network = networks.diffusers(method.width, size, num_classes=CLASSES if method.guided else 0).to(device).eval()
    products = (1 - torch.linspace(1e-4, 0.02, 1000, device=device)).cumprod(0)
    model = DiscreteEpsDDPMDenoiser(epsilon(network, method, device), products, quantize=False).to(device)
    sigmas, generator = model.get_sigmas(method.steps), torch.Generator(device).manual_seed(0)

    @torch.no_grad()
    def draw() -> Tensor:
        x = torch.randn(method.batch, 3, size, size, generator=generator, device=device) * sigmas[0]
        return eight_bits(sample_dpmpp_2m(model, x, sigmas, disable=True))

    return draw


def eight_bits(x: Tensor) -> Tensor:
    """uint8 [b, h, w, c] on the CPU."""
    return ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu()


class Nothing(nn.Module):
    """A network that costs nothing: what is left is the sampler's own work."""

    def forward(self, x: Tensor, label: Tensor, cond: Tensor | None = None) -> Tensor:
        return x


def arithmetic(bench: Bench, method: Method) -> Row:
    """What the loops cost around a network that costs nothing, and the same number of calls of the real one."""
    sides = (
        Side(OURS, partial(drawing, bench, method, ours_alone, "32-true"), needed=True),
        Side("diffusers", partial(drawing, bench, method, diffusers_alone, "fp32")),
        Side("the network", partial(drawing, bench, method, network_alone, "fp32"), needed=True),
    )
    share = Ratio("share of the network's time", OURS, "the network", {"cpu": "< 0.02", "cuda": "< 0.02"})
    what = f"{type(method.sampler).__name__}'s own arithmetic, {method.steps} steps, {method.batch} images"
    ratios = (share, Ratio("diffusers' share", "diffusers", "the network"), Ratio("diffusers / ours", "diffusers", OURS))
    return Row(f"arithmetic-{method.name}", what, "s/image", sides, ratios)


def ours_alone(bench: Bench, method: Method, precision: str) -> Callable[[], Any]:
    """Our sampler around nothing. A network without weights is on the CPU: one weight says where it is."""
    nothing = Nothing()
    nothing.place = nn.Parameter(torch.zeros(()), requires_grad=False)
    made = recipe(bench, method, nothing, precision)
    return lambda: made(range(method.batch))


def diffusers_alone(bench: Bench, method: Method, precision: str) -> Callable[[], Any]:
    """diffusers' scheduler in its documentation's loop around nothing."""
    with missing("diffusers"):
        import diffusers as package

    generator = torch.Generator(bench.device).manual_seed(0)
    return partial(documented, bench, method, getattr(package, method.scheduler)(), lambda x, t: x, torch.float32, generator)


def network_alone(bench: Bench, method: Method, precision: str) -> Callable[[], Any]:
    """As many calls of our network."""
    where = torch.device(bench.device)
    network = laid_out(networks.ours(method.width, bench.sizes.image_size).to(where).eval(), where)
    x = torch.randn(method.batch, 3, bench.sizes.image_size, bench.sizes.image_size, device=bench.device)
    label = torch.full((method.batch,), 500.0, device=bench.device)
    calls: Sequence[int] = range(method.steps)

    @torch.no_grad()
    def call() -> None:
        for _ in calls:
            network(x, label)

    return call
