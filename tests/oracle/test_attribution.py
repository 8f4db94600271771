"""Where a distance comes from, of models whose error is known: an exact denoiser has none, and a worse one has what it was given."""

from dataclasses import dataclass

import pytest
import torch

from diffusion.codecs import Pixels as PixelCodec
from diffusion.conditions import Classes
from diffusion.data import Digits
from diffusion.denoiser import Estimate
from diffusion.evaluation.attribution import Stage, bias, in_infinity, only_limits, pieces, said, with_infinity
from diffusion.evaluation.differences import Difference
from diffusion.evaluation.measure import measure
from diffusion.evaluation.subjects import Drawn
from diffusion.generate import Recipe
from diffusion.grids import Trailing
from diffusion.metrics import FrechetDistance, FrechetInfinity, Pixels
from diffusion.model import Model
from diffusion.oracles import EmpiricalDistribution
from diffusion.samplers import DDIM
from diffusion.schedules import Cosine

N = 400


@dataclass
class Summed:
    """E[x_0 | x_t] over the images of a class by a sum in float64, written again; shrunk by a factor."""

    data: torch.Tensor
    labels: torch.Tensor
    schedule: Cosine
    factor: float = 1.0
    device = torch.device("cpu")

    def __call__(self, x_t, t, cond=None):
        alpha, sigma = (value.double() for value in self.schedule(t.double()))
        x, rows = x_t.double().flatten(1), self.data.double().flatten(1)
        a, s = (value.expand(len(x))[:, None] for value in (alpha, sigma))
        far = torch.stack([((one - a_ * rows) ** 2).sum(1) for one, a_ in zip(x, a, strict=True)])
        weights = torch.softmax(torch.where(cond[:, None] == self.labels, -far / (2 * s**2), -torch.inf), 1)
        x0 = self.factor * (weights @ rows).reshape(x_t.shape)
        shape = [-1, *[1] * (x_t.ndim - 1)]
        return Estimate(x0.to(x_t), ((x_t - a.reshape(shape) * x0) / s.reshape(shape)).to(x_t))


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("attribution")


@pytest.fixture(scope="module")
def lines(place):
    """`lines(recipe)`: what evaluating it gives, as plain data."""
    data = Digits(root=place, cache=place / "cache", split="train", image_size=8, channels=1, num_classes=10, flip=False).load()
    conditions = Classes(num_classes=10)
    codec = PixelCodec(data_shape=(8, 8, 1))
    x0, labels = codec.encode(torch.from_numpy(data.images.copy())), torch.from_numpy(data.labels)
    metrics = [kind(Pixels(), n=N, cache=place, groups=10) for kind in (FrechetDistance, FrechetInfinity)]
    for metric in metrics:
        metric.setup(data, "cpu", conditions)

    def of(denoiser, steps=20):
        recipe = denoiser if isinstance(denoiser, Drawn) else Recipe(denoiser, DDIM(), Trailing(steps), (1, 8, 8), codec, conditions)
        model = Model(denoiser, codec, conditions)
        found = []
        for metric, values, passport in measure(model, recipe, metrics, {"ema": None, "step": 0, "weights": None}):
            found.append({**values, "numbers": [metric.name], **metric.facts(), "passport": passport.to_dict()})
        return found

    return {
        "floor": of(Drawn(data, conditions)),
        "exact": of(EmpiricalDistribution(x0, Cosine(), labels)),
        "trained": of(Summed(x0, labels, Cosine())),
        "worse": of(Summed(x0, labels, Cosine(), 0.8)),
        "crude": of(EmpiricalDistribution(x0, Cosine(), labels), steps=3),
    }


def stages(*names):
    return [Stage(name, f"{name}'s part", f"mend {name}", list) for name in names]


def attributed_to(lines, *names):
    return pieces(stages(*names), [lines[name] for name in names])[f"fd-pixels@{N}"]


def test_of_an_exact_denoiser_the_model_s_part_is_nothing(lines):
    """Another implementation of it, in another precision: a few pixels are another level."""
    _, _, model = attributed_to(lines, "floor", "exact", "trained")
    assert abs(model.change.value) < 1e-4 * model.value


def test_a_worse_model_and_a_cruder_sampler_are_found_each_in_its_own_part(lines):
    floor, sampler, model = attributed_to(lines, "floor", "exact", "worse")
    assert model.change.p < 0.01 and model.change.value > 3 * abs(sampler.change.value)
    assert floor.change.value + sampler.change.value + model.change.value == pytest.approx(model.value)
    text = said([floor, sampler, model], None)
    assert "Most beyond the floor is worse's part: mend worse." in text
    _, crude, refined = attributed_to(lines, "floor", "crude", "exact")
    assert crude.change.p < 0.05 and crude.change.value > 0 > refined.change.value
    assert "Most beyond the floor is crude's part" in said(attributed_to(lines, "floor", "crude"), None)


def test_what_is_told_from_nothing_is_said_so(lines):
    own = attributed_to(lines, "floor", "floor")
    assert own[1].change == Difference(0.0, 0.0, 9) and "Nothing beyond the floor is told from 0" in said(own, None)


def test_the_bias_of_n_is_what_lies_above_the_extrapolation(lines):
    """Of the data's own images the truth at infinity is 0, so all of their distance is bias."""
    more, (own,) = bias(lines["floor"], f"fd-pixels@{N}"), attributed_to(lines, "floor")
    assert more.value > 0 and abs(more.value - own.value) <= 2 * more.half_width(0.05) < own.value
    assert "is there because the images are not infinitely many" in said([own], more)
    assert bias(lines["floor"], f"fd-infinity-pixels@{N}") is None


def test_names_and_stages_follow_from_what_a_run_has():
    assert in_infinity("fd-digits@1k") == "fd-infinity-digits@1k" and in_infinity("fid@50k") == "fid-infinity@50k"
    cfg, clip = {"_target_": "diffusion.guidance.ClassifierFree"}, {"_target_": "diffusion.guidance.Clip"}
    assert only_limits({"cfg": cfg, "clip": clip}) == {"clip": clip}
    metric = {"fd": {"_target_": "diffusion.metrics.FrechetDistance", "n": 5}, "kid": {"_target_": "diffusion.metrics.KernelDistance"}}
    assert with_infinity(metric).keys() == {"fd", "kid", "fd_infinity"}
    assert with_infinity(metric)["fd_infinity"] == {"_target_": "diffusion.metrics.FrechetInfinity", "n": 5}
