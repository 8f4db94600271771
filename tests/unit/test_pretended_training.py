"""Training on a device that is pretended: whatever stands in conf/ makes its steps there, those of the CPU, without waiting."""

from contextlib import nullcontext
from functools import partial
from itertools import pairwise, product
from types import SimpleNamespace

import pytest
import torch
from composing import TINY, composed
from covering import choices, covering, file, meaningless, pairs
from pretended import HERE, Device, a_gpu_without_waiting
from pytorch_lightning.accelerators import Accelerator, AcceleratorRegistry
from pytorch_lightning.strategies import SingleDeviceStrategy, StrategyRegistry
from torch import nn

from diffusion.codecs import Pixels
from diffusion.conditions import Classes
from diffusion.denoiser import Denoiser
from diffusion.model import Model
from diffusion.objectives import in_steps
from diffusion.schedules import discrete
from diffusion.support.build import build
from diffusion.training.ema import EMA
from diffusion.training.module import DiffusionModule
from diffusion.training.power_ema import PostHoc
from diffusion.training.run import train

pytestmark = pytest.mark.usefixtures("noise_of_a_device")
CLASSES = 3
IMAGES = torch.randint(0, 256, (6, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(6) % CLASSES
CHOICES = choices("schedule", "parameterization", "objective", "times") | {"ema": ["ema", "posthoc"]}
CHOICES["objective"] = [word for word in CHOICES["objective"] if word != "cross_entropy" and "reconstruction" not in word]  # others' losses
BOUNDS = [objective for objective in CHOICES["objective"] if in_steps(build(file("objective", objective)))]
EMAS = {"ema": lambda: EMA(0.9), "posthoc": lambda: PostHoc(0.9)}


def continuous(schedule):
    return build(file("schedule", schedule)).num_timesteps is None


REFUSED = {
    frozenset({("schedule", s), ("parameterization", p)})
    for s, p in product(CHOICES["schedule"], CHOICES["parameterization"])
    if meaningless(s, p)
} | {
    frozenset({("schedule", s), discrete_only})
    for s in filter(continuous, CHOICES["schedule"])
    for discrete_only in (("times", "importance"), *(("objective", o) for o in BOUNDS))
}
CASES = list(covering(CHOICES, REFUSED))


class Small(nn.Module):
    """A network that sees all that it is told."""

    def __init__(self, out_channels):
        super().__init__()
        self.stem, self.out = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, out_channels, 1)
        self.time, self.classes, self.norm = nn.Linear(1, 4), nn.Embedding(CLASSES + 1, 4), nn.GroupNorm(2, 4)

    def forward(self, x, label, cond):
        told = self.time(label[:, None] / 1000) + self.classes(cond % (CLASSES + 1))
        return self.out(torch.nn.functional.silu(self.norm(self.stem(x) + told[:, :, None, None])))


def trained(case, device, second=nullcontext):
    """Of two steps on this device, the second within a context: the weights, their averages, and the means of the losses."""
    torch.manual_seed(0)
    schedule, read = (build(file(group, case[group]), group) for group in ("schedule", "parameterization"))
    objective = build(file("objective", case["objective"]), "objective", {"span": (-1.0, 1.0)})
    times = build(file("times", case["times"]), "times", {"num_timesteps": schedule.num_timesteps})
    denoiser = Denoiser(Small(1 + objective.learned_variance), schedule, read, objective.learned_variance)
    module = DiffusionModule(
        Model(denoiser, Pixels((4, 4, 1)), Classes(CLASSES)),
        objective,
        times,
        partial(torch.optim.AdamW, lr=1e-2, fused=True),
        lambda _: 1.0,
        EMAS[case["ema"]](),
        p_uncond=0.5,
        mirror=True,
        grad_clip=0.1,
    ).to(device)
    batch = IMAGES.to(device), LABELS.to(device)
    module.trainer = SimpleNamespace(global_step=0, global_rank=0, world_size=1, accumulate_grad_batches=1)
    optimizer = module.configure_optimizers()["optimizer"]
    for within in (nullcontext, second):
        with within():
            optimizer.zero_grad()
            module.training_step(batch, 0).backward()
            module.on_before_optimizer_step(optimizer)
            optimizer.step()
            module.follow()
        module.trainer.global_step += 1
    weights = {name: parameter.detach() for name, parameter in module.named_parameters()}
    return [{name: tensor.cpu() for name, tensor in tensors.items()} for tensors in (weights, module.ema.shadow)], module.meter.read()


def check(case):
    """On the device as on the CPU, and the second step waits for nothing; the first brings the averages to the device."""
    discrete._table.cache_clear()
    with Device() as device:
        found = trained(case, HERE, device.without_waiting)
    discrete._table.cache_clear()
    torch.testing.assert_close(found, trained(case, "cpu"), rtol=1e-5, atol=1e-6)  # sums of lists of tensors in another order


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.values()))
def test_pairwise(case):
    check(case)


@pytest.mark.cuda
@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(case.values()))
def test_pairwise_on_a_gpu(case):
    """Its random numbers are others than the CPU's: that they are numbers, and that torch sees nothing wait."""
    weights, averages, numbers = (found := trained(case, "cuda", a_gpu_without_waiting))[0][0], found[0][1], found[1]
    assert all(tensor.isfinite().all() for tensor in (*weights.values(), *averages.values()))
    assert torch.tensor(list(numbers.values())).isfinite().all()


@pytest.mark.slow
@pytest.mark.parametrize("schedule", CHOICES["schedule"])
def test_every_combination(schedule):
    for values in product(*(CHOICES[name] for name in CHOICES if name != "schedule")):
        case = {"schedule": schedule} | dict(zip([name for name in CHOICES if name != "schedule"], values, strict=True))
        if not pairs(case) & REFUSED:
            try:
                check(case)
            except Exception as error:
                raise AssertionError(f"{case}: {error}") from error


class There(Accelerator):
    """The device, to Lightning."""

    parse_devices = staticmethod(int)
    get_parallel_devices = staticmethod(lambda devices: [HERE] * devices)
    auto_device_count = staticmethod(lambda: 1)
    is_available = staticmethod(lambda: True)
    name = staticmethod(lambda: "cuda")

    def setup_device(self, device):
        pass

    def teardown(self):
        pass

    def get_device_stats(self, device):
        return {}


@pytest.fixture
def there():
    """The words for a run on the device."""
    AcceleratorRegistry.register("pretended", There)
    StrategyRegistry.register("pretended", SingleDeviceStrategy, device=HERE)
    yield ["trainer.accelerator=pretended", "trainer.strategy=pretended"]
    AcceleratorRegistry.remove("pretended")
    StrategyRegistry.remove("pretended")


PICTURES = [*TINY, "ema=posthoc", "metric=memorization", "metric.n=8", "metric.groups=0"]
VECTORS = ["dataset=two_moons", "network.width=16", "accumulate=2", "optimizer=adam", "grad_clip=null", "grid.steps=3", "metric.n=64"]


TEXTS = ["dataset=captioned_digits", "dataset.n=32", "conditions.encoder.depth=1", "batch_size=8", "grid.steps=3", "metric=none"]


@pytest.mark.parametrize("words", [PICTURES, VECTORS, TEXTS], ids=["pictures", "vectors", "texts"])
def test_a_run(there, words, tmp_path, monkeypatch):
    """By Lightning's loop, from batch to batch nothing waits but what is due; grids and numbers are made on the device too."""
    seen = []
    monkeypatch.setattr(DiffusionModule, "on_train_batch_start", lambda self, *_: seen.append(device.counted.copy()), raising=False)
    late = [f"{key}_every=8" for key in ("log", "eval", "checkpoint")]
    with Device() as device:
        assert train(composed(*words, *late, "steps=4", f"paths.cache={tmp_path}", *there), tmp_path / "run")
    waited = [after - before for before, after in pairwise(seen)]
    assert len(waited) >= 3
    assert not any(waited[2:]), waited  # the first step, of one batch or two, brings the averages to the device, and its loss is read
