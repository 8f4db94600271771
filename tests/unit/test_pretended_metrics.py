"""Metrics on a device that is pretended: the numbers of the CPU, and an update does not wait for a GPU."""

from contextlib import nullcontext

import numpy as np
import pytest
import torch
from covering import choices, file
from pretended import HERE, Device
from torch import nn

from diffusion.codecs import Pixels
from diffusion.conditions import Classes, Originals
from diffusion.data import ImageSet
from diffusion.denoiser import Denoiser
from diffusion.metrics import Extractor
from diffusion.parameterization import V
from diffusion.schedules import Cosine, discrete
from diffusion.support.build import build

pytestmark = pytest.mark.usefixtures("noise_of_a_device")
N, CLASSES = 24, 3
SMALL = {
    "n": N,
    "groups": 4,
    "images": 6,
    "batch_size": 6,
    "projections": 8,
    "subsets": 3,
    "subset_size": 6,
    "real": 20,
    "k": 2,
    "splits": 2,
}
IMAGES, REAL = (torch.randint(0, 256, (n, 4, 4, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(n)) for n in (N, 30))
# Left out: those that are others, and those of other pictures, captioned or of more pixels, which their own tests measure on the CPU.
OTHERS = ("none", "fid_if_available", "prompt_accuracy", "prompt_accuracy_fashion", "ssim")
METRICS = [name for name in choices("metric")["metric"] if name not in OTHERS]
WAITING = ("psnr",)  # torchmetrics' own
PAIRED = ("psnr", "rfd")  # of reconstructions, each told its original


class Layers(nn.Module):
    """Three layers of any network: (features [b, 6], logits [b, CLASSES], spatial [b, 5])."""

    def __init__(self):
        super().__init__()
        self.features, self.logits, self.spatial = (nn.Linear(16, width) for width in (6, CLASSES, 5))

    def forward(self, x):
        x = x.flatten(1)
        return self.features(x), self.logits(x), self.spatial(x)


class Any(Extractor):
    """A network that stands for all."""

    name, frechet, dim, channels, resize = "any", "fd-any", 6, 1, "none"
    layers = ("features", "logits", "spatial")

    def __init__(self):
        torch.manual_seed(0)
        super().__init__(Layers())

    def prepare(self, images):
        return images.float() / 127.5 - 1


def metric_of(name, cache):
    (stage,) = file("metric", name).values()
    stage |= {key: value for key, value in SMALL.items() if key in stage}
    stage |= {key: value for key, value in {"extractor": Any(), "cache": cache}.items() if key in stage}
    return build(stage, f"metric.{name}")


def numbers(name, cache, device, updating=nullcontext):
    """The metric's numbers of the images, in two updates, the second within a context."""
    discrete._table.cache_clear()
    metric = metric_of(name, cache)
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(1, 1, 3, padding=1), nn.Tanh())
    denoiser = Denoiser(Labelled(network), Cosine(num_timesteps=8), V()).to(device)
    conditions, told = (Originals(shown=REAL), REAL) if name in PAIRED else (Classes(CLASSES), torch.arange(N) % CLASSES)
    metric.setup(ImageSet(REAL.numpy(), np.arange(30) % CLASSES, "set", "train", CLASSES, "0"), device, conditions)
    metric.model(denoiser, Pixels((4, 4, 1)), conditions)
    for half, within in ((slice(0, 10), nullcontext), (slice(10, N), updating)):
        with within():
            metric.update(IMAGES[half], told[half])
    return metric.numbers()


class Labelled(nn.Module):
    """A network that is told time and class, and takes no notice."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x, label, cond=None):
        return self.network(x)


@pytest.mark.filterwarnings("ignore")  # so few images are too few
@pytest.mark.parametrize("name", METRICS)
def test_metrics(name, tmp_path):
    with Device() as device:
        found = numbers(name, tmp_path / "there", HERE, nullcontext if name in WAITING else device.without_waiting)
    assert found == pytest.approx(numbers(name, tmp_path / "here", "cpu"), rel=1e-6, abs=1e-9)
    assert all(np.isfinite(value) for value in found.values())
