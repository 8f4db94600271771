"""Schedule x parameterization x sampler x guidance x grid x learned variance: whatever stands in conf/ composes with all the rest.

Each file of the groups is a choice, so that a new one is tested without an edit here. Fast, every pair of choices of two groups is in some
case (a covering array); slow, every combination. A combination that has no meaning is refused with a sentence, and those are named below.
"""

from itertools import combinations, product

import pytest
import torch
from covering import CLASSES, SHAPE, choices, covering, meaningless, pairs, recipe, unguided

from diffusion.generate import trajectories

CHOICES = choices("sampler", "guidance", "grid", "schedule", "parameterization") | {"learned": [False, True]}


@pytest.fixture(autouse=True)
def double():
    """float64, so that what depends on the split of a batch is not taken for rounding."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def ends(made, seeds):
    cond = torch.tensor(seeds) % CLASSES
    for state in trajectories(made.denoiser, made.sampler, made.grid, SHAPE, seeds, cond):  # noqa: B007
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


REFUSED = {
    frozenset({("schedule", s), ("parameterization", p)})
    for s, p in product(CHOICES["schedule"], CHOICES["parameterization"])
    if meaningless(s, p)
} | {frozenset({("sampler", s), ("guidance", g)}) for s, g in product(CHOICES["sampler"], CHOICES["guidance"]) if unguided(s, g)}

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
    with pytest.raises(ValueError, match=r"its alpha is 0|say sampler=ddpm, or guidance="):
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
