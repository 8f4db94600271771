"""What goes with a schedule: docs/compatibility.md says what the classes say, and a refusal names all that does not fit and what does."""

import pytest
import torch
from compatibility import PAGE, choices, page, schedules

from diffusion.denoiser import Denoiser
from diffusion.objectives import Hybrid, Simple
from diffusion.parameterization import X0, Epsilon, V, Velocity
from diffusion.schedules import Cosine, Flow
from diffusion.support.errors import UserError
from diffusion.times import Importance, LogNormal, Uniform
from diffusion.training.fitting import endless, misfits, require_fit
from diffusion.weightings import MinSNR, TruncatedSNR


def test_the_page_is_what_the_classes_say():
    assert PAGE.read_text() == page(), "python tests/compatibility.py writes the page anew"


def test_all_that_does_not_fit_is_said_at_once(tiny):
    with pytest.raises(UserError) as said:
        require_fit(tiny("schedule=flow", "times=importance"))
    for word in ("Flow does not go with", "Epsilon", "parameterization=v", "Hybrid", "objective=simple", "times=uniform"):
        assert word in str(said.value)
    assert str(said.value).count(". ") == 0
    require_fit(tiny("schedule=flow", "parameterization=v", "objective=simple", "times=uniform"))


@pytest.mark.parametrize("word", ["v", "velocity", "x0", "edm"])
def test_the_words_that_a_refusal_names_do(word):
    """And of the rest none would."""
    read = choices()["parameterization"]
    assert misfits(Flow(), read[word], Simple(), Uniform()) == []
    assert {name for name in read if not misfits(Flow(), read[name], Simple(), Uniform())} == {"v", "velocity", "x0", "edm"}
    assert len(misfits(Flow(), Epsilon(), Hybrid(), Importance)) == 3 and misfits(Cosine(), Epsilon(), Hybrid(), Importance) == []


def test_a_loss_without_a_mean_is_refused():
    """Of x_0 with weights max(SNR, 1) on straight paths: SNR = (1 - t)^2/t^2, whose mean over t in (0, 1] is infinite. A bounded weight, a
    parameterization whose error vanishes at the data, a time that avoids them, or steps that end at t = 1/T have a mean."""
    weighted = Simple(TruncatedSNR())
    assert "X0" in misfits(Flow(), X0(), weighted, Uniform())[0]
    for schedule, read, objective, times in (
        (Flow(), X0(), Simple(MinSNR()), Uniform()),
        (Flow(), V(), weighted, Uniform()),
        (Flow(), Velocity(), weighted, Uniform()),
        (Flow(), X0(), weighted, LogNormal()),
        (Cosine(), X0(), weighted, Uniform()),
    ):
        assert misfits(schedule, read, objective, times) == []


@pytest.mark.parametrize("name", [name for name, schedule in schedules().items() if schedule.num_timesteps is None])
def test_the_untrained_loss_is_that_of_a_network_that_says_nothing(name):
    """By Monte Carlo, with the objective itself and x_0, eps of the standard normal distribution."""
    schedule, t = schedules()[name], torch.full((20_000,), 0.3, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    x0, eps = (torch.randn(len(t), 4, dtype=torch.float64, generator=generator) for _ in range(2))
    for read in (X0(), V(), Velocity()):
        for objective in (Simple(), Simple(MinSNR())):
            silent = torch.nn.Identity()
            silent.forward = lambda x, label, cond: torch.zeros_like(x)
            losses = objective(Denoiser(silent, schedule, read), x0, t, eps)["loss"]
            expected = objective.untrained(schedule, read, t[:1]).item()
            assert losses.mean().item() == pytest.approx(expected, abs=5 * losses.std().item() / len(t) ** 0.5)
    assert endless(schedule, X0(), Simple(TruncatedSNR()))
