"""Schedule x parameterization x sampler x guidance x grid x learned variance: whatever stands in conf/ composes with all the rest.

Each file of the groups is a choice, so that a new one is tested without an edit here. Fast, every pair of choices of two groups is in some
case (a covering array); slow, every combination. A combination that has no meaning is refused with a sentence, and those are named below.
"""

from itertools import combinations, product
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from diffusion import checkpoint
from diffusion.codecs import Pixels
from diffusion.conditions import Classes
from diffusion.denoiser import Denoiser
from diffusion.generate import trajectories
from diffusion.model import Model
from diffusion.support.build import build, spread
from diffusion.typing import expand

CONF = Path(__file__).resolve().parents[2] / "conf"
GROUPS = ("sampler", "guidance", "grid", "schedule", "parameterization")
FILES = {group: [path.stem for path in sorted((CONF / group).glob("*.yaml"))] for group in GROUPS}
CHOICES = {group: [name for name in names if name != "custom"] for group, names in FILES.items()} | {"learned": [False, True]}
STEPS, SHAPE, CLASSES = 4, (2, 3, 3), 3
CHEAPER = {"langevin": {"walk": 2}, "rk45": {"rtol": 1e-2, "atol": 1e-2}}  # the same code, fewer calls
AFTER_ANOTHER = {"rescale", "interval"}  # guidances that act on a guided model


def file(group, choice):
    """What a choice's file says of its own group."""
    content = yaml.safe_load((CONF / group / f"{choice}.yaml").read_text()) or {}
    return content.get(group, content) if "defaults" in content else content


def parts(case):
    """The configurations of a case's sampler, grid and guidance."""
    sampler = file("sampler", case["sampler"]) | CHEAPER.get(case["sampler"], {})
    grid = file("grid", case["grid"]) | {"steps": STEPS}
    names = ["cfg", case["guidance"]] if case["guidance"] in AFTER_ANOTHER else [case["guidance"]]
    stages = {key: stage for name in names for key, stage in file("guidance", name).items()}
    for key, value in (("scale", 0.7), ("ckpt", "another")):
        if f"'{key}'" in str(stages):
            stages = spread(stages | {key: value}, "guidance")
    return sampler, grid, stages


class Known(nn.Module):
    """A network whose x_0 is known, asinh(x_t)/2 moved by its class: it answers in the words of any parameterization.

    It grows without end: where a combination is unstable, as PNDM's is on four steps of the cosine schedule, a bounded x_0 would become
    constant over the image, and its contrast, which Rescale divides by, mere rounding."""

    def __init__(self, schedule, parameterization, learned, shift=0.2):
        super().__init__()
        self.schedule, self.parameterization, self.learned, self.shift = schedule, parameterization, learned, shift

    def forward(self, x, label, cond=None):
        alpha, sigma = (expand(v, x) for v in self.schedule(self.schedule.labelled(label).clamp(1e-4, 1)))
        x0 = torch.asinh(x) / 2
        if cond is not None:
            x0 = x0 + self.shift * (cond[:, None, None, None] + 1)
        out = self.parameterization.target(x0, (x - alpha * x0) / sigma, alpha, sigma)
        return torch.cat([out, 0.2 * torch.tanh(x)], 1) if self.learned else out


class Judge:
    """A classifier of noisy images: classes by the mean of the first channel."""

    def __init__(self, schedule):
        self.schedule = schedule

    def __call__(self, x, label):
        return torch.stack([-((x[:, 0].mean((1, 2)) - c) ** 2) for c in range(CLASSES)], 1)


def recipe(case, monkeypatch):
    """(guided denoiser, sampler, grid) of a case; a second run, where a guidance wants one, is a second network."""
    schedule, read = (build(file(group, case[group]), group) for group in ("schedule", "parameterization"))
    denoiser, other = (Denoiser(Known(schedule, read, case["learned"], shift), schedule, read, case["learned"]) for shift in (0.2, 0.1))

    codec, conditions = Pixels((*SHAPE[1:], SHAPE[0])), Classes(CLASSES)

    def load(path, averaged=True, kind=Denoiser):
        return Model(other if kind is Denoiser else Judge(schedule), codec, conditions, weights="another")

    monkeypatch.setattr(checkpoint, "load", load)
    made = Model(denoiser, codec, conditions).recipe(*parts(case))
    return made.denoiser, made.sampler, made.grid


@pytest.fixture(autouse=True)
def double():
    """float64, so that what depends on the split of a batch is not taken for rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def ends(made, seeds):
    cond = torch.tensor(seeds) % CLASSES
    for state in trajectories(*made, SHAPE, seeds, cond):  # noqa: B007
        pass
    return state.x


def check(case, monkeypatch):
    """Finite, of the right shape, the same when made again, the same one by one or with others, in another order."""
    made = recipe(case, monkeypatch)
    whole = ends(made, [5, 6, 7])
    check_two(whole[:2], made)
    assert torch.equal(whole, ends(made, [5, 6, 7]))
    torch.testing.assert_close(ends(made, [7, 6]).flip(0), whole[1:], rtol=1e-9, atol=1e-9)


def check_two(images, made):
    """Of two images from seeds 5 and 6: finite, of the right shape, and the first as it is alone."""
    assert images.shape == (2, *SHAPE)
    assert images.isfinite().all()
    torch.testing.assert_close(ends(made, [5]), images[:1], rtol=1e-9, atol=1e-9)


def meaningless(schedule, parameterization):
    """An output that says nothing of x_0 where alpha = 0."""
    return build(file("parameterization", parameterization), "").needs_signal and build(file("schedule", schedule), "").reaches_noise


REFUSED = {
    frozenset({("schedule", s), ("parameterization", p)})
    for s, p in product(CHOICES["schedule"], CHOICES["parameterization"])
    if meaningless(s, p)
}


def pairs(case):
    return {frozenset(pair) for pair in combinations(case.items(), 2)}


def covering(choices, refused):
    """Cases that hold every pair of choices of two groups but the refused ones; each is filled in greedily, largest group first."""
    names = sorted(choices, key=lambda name: -len(choices[name]))
    left = {frozenset({(a, u), (b, v)}): None for a, b in combinations(names, 2) for u, v in product(choices[a], choices[b])}
    left = {pair: None for pair in left if pair not in refused}  # a dict keeps its order: the same cases everywhere
    while left:
        case = dict(sorted(next(iter(left)), key=lambda item: names.index(item[0])))
        for name in names:
            if name not in case:
                fresh = {v: {frozenset({(name, v), other}) for other in case.items()} for v in choices[name]}
                case[name] = max((v for v in fresh if not fresh[v] & refused), key=lambda v: sum(pair in left for pair in fresh[v]))
        for pair in pairs(case):
            left.pop(pair, None)
        yield {name: case[name] for name in names}


CASES = list(covering(CHOICES, REFUSED))


def test_every_pair_is_in_some_case():
    seen = set().union(*map(pairs, CASES))
    wanted = {frozenset({(a, u), (b, v)}) for a, b in combinations(CHOICES, 2) for u, v in product(CHOICES[a], CHOICES[b])}
    assert seen == wanted - REFUSED
    assert len(CASES) < 2 * len(CHOICES["sampler"]) * len(CHOICES["guidance"])


@pytest.mark.parametrize("case", CASES, ids=lambda case: "-".join(map(str, case.values())))
def test_pairwise(case, monkeypatch):
    check(case, monkeypatch)


@pytest.mark.parametrize("pair", sorted(sorted(pair) for pair in REFUSED), ids=str)
def test_what_has_no_meaning_is_refused(pair, monkeypatch):
    with pytest.raises(ValueError, match="its alpha is 0"):
        recipe(CASES[0] | dict(pair), monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("guidance", CHOICES["guidance"])
@pytest.mark.parametrize("sampler", CHOICES["sampler"])
def test_every_combination(sampler, guidance, monkeypatch):
    """Of the five groups; the learned variance takes turns."""
    rest = ("grid", "schedule", "parameterization")
    for i, values in enumerate(product(*(CHOICES[name] for name in rest))):
        case = dict(zip(rest, values, strict=True)) | {"sampler": sampler, "guidance": guidance, "learned": i % 2 == 0}
        if not pairs(case) & REFUSED:
            try:
                made = recipe(case, monkeypatch)
                check_two(ends(made, [5, 6]), made)
            except Exception as error:
                raise AssertionError(f"{case}: {error}") from error
