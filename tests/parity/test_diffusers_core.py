"""Schedules and first-order samplers against diffusers, step by step, with the same network output and the same noise.

diffusers keeps its tables in float32; where a test asks for 1e-9 it gives the reference our float64 table, so that formulas are compared
and not roundings. Each difference of definition is asserted, with its reason, in the tests named `differs`.
"""

from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.denoiser import Estimate
from diffusion.grids import Leading, Linspace, Trailing
from diffusion.parameterization import X0, Epsilon, V
from diffusion.posterior import step
from diffusion.samplers import DDIM, DDPM, Euler, EulerAncestral
from diffusion.schedules import Cosine, Linear, ScaledLinear, Sigmoid

pytest.importorskip("diffusers")
from diffusers.schedulers import scheduling_ddim as ddim
from diffusers.schedulers import scheduling_ddpm as ddpm
from diffusers.schedulers import scheduling_euler_ancestral_discrete as ancestral
from diffusers.schedulers import scheduling_euler_discrete as euler

T = 1000
SCHEDULES = {
    "linear": (Linear, {"beta_schedule": "linear"}),
    "scaled_linear": (ScaledLinear, {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}),
    "squaredcos_cap_v2": (Cosine, {"beta_schedule": "squaredcos_cap_v2"}),
}
READS = {"epsilon": Epsilon(), "sample": X0(), "v_prediction": V()}
GRIDS = {"leading": Leading, "trailing": Trailing, "linspace": Linspace}
PRECISIONS = [(torch.float64, 1e-9), (torch.float32, 1e-4)]


def table(schedule) -> torch.Tensor:
    """abar at the knots, float64."""
    alpha, _ = schedule(torch.arange(1, T + 1, dtype=torch.float64) / T)
    return alpha**2


def output(x: torch.Tensor, index: float, learned: bool = False) -> torch.Tensor:
    """A network, the same for both sides: bounded, smooth, different at every step."""
    out = (0.8 * x + 0.001 * index).sin()
    return torch.cat([out, (2 * x + index).cos()], 1) if learned else out


def denoiser(schedule, read, learned=False):
    def denoise(x, t):
        alpha, sigma = schedule(t)
        index = (T * t - 1).item()
        out = output(x, index, learned)
        out, frac = (out[:, :2], (out[:, 2:] + 1) / 2) if learned else (out, None)
        return Estimate(read.x0(out, x, alpha, sigma), read.eps(out, x, alpha, sigma), frac)

    denoise.schedule = schedule
    return denoise


class Tape:
    """A recorded sequence of noises, read from its start by each side; stands for torch.randn_like and for diffusers' randn_tensor."""

    def __init__(self, dtype):
        generator = torch.Generator().manual_seed(7)
        self.noises = iter(torch.randn(2000, 2, 2, 3, 3, generator=generator, dtype=torch.float64).to(dtype))

    def __call__(self, *_, **__):
        return next(self.noises)


def first(dtype) -> torch.Tensor:
    return torch.randn(2, 2, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(dtype)


def assert_near(ours: torch.Tensor, theirs: torch.Tensor, tolerance: float) -> None:
    """Relative to the largest entry."""
    assert ours.dtype == theirs.dtype
    assert (ours - theirs).abs().max() <= tolerance * theirs.abs().max()


# ---- schedules


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("zero", [False, True])
def test_betas_and_their_products(name, zero):
    """float32 tables: beta to a few ulps, abar to what a float32 product of 1000 factors keeps."""
    kind, settings = SCHEDULES[name]
    theirs = ddpm.DDPMScheduler(rescale_betas_zero_snr=zero, **settings)
    ours = kind(zero_terminal_snr=zero)
    if not zero:
        np.testing.assert_allclose(ours.betas().numpy(), theirs.betas.numpy(), rtol=5e-7, atol=2e-7)  # 1 - cos^2/cos^2
    np.testing.assert_allclose(table(ours).numpy(), theirs.alphas_cumprod.numpy(), rtol=1e-4, atol=1e-6)


def test_sigmoid_is_geodiff_s():
    theirs = ddpm.DDPMScheduler(beta_schedule="sigmoid")
    np.testing.assert_allclose(Sigmoid().betas().numpy(), theirs.betas.numpy(), rtol=2e-6)
    np.testing.assert_allclose(table(Sigmoid()).numpy(), theirs.alphas_cumprod.numpy(), rtol=1e-4)


def test_zero_terminal_snr_in_float64():
    for kind, _ in SCHEDULES.values():
        beta = kind().betas()
        theirs = (1 - ddpm.rescale_zero_terminal_snr(beta)).cumprod(0)
        torch.testing.assert_close(table(kind(zero_terminal_snr=True)), theirs, rtol=1e-9, atol=1e-15)


def test_ladders_differ_in_the_number_of_steps_at_T_other_than_1000():
    """diffusers leaves linear's betas unscaled at T = 100, where half of the signal is left at the end (trap 8); cosine needs no scale."""
    assert ddpm.DDPMScheduler(num_train_timesteps=100).alphas_cumprod[-1].sqrt() == pytest.approx(0.60, abs=0.005)
    assert Linear(100)(torch.ones((), dtype=torch.float64))[0] < 0.005
    theirs = ddpm.DDPMScheduler(num_train_timesteps=100, beta_schedule="squaredcos_cap_v2")
    np.testing.assert_allclose(Cosine(100).betas().numpy(), theirs.betas.numpy(), rtol=1e-5)


# ---- grids


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
def test_every_number_of_steps_visits_the_same_ones(spacing):
    """All 1..1000. One difference: linspace with one step is T - 1 here; numpy's is 0, the clean end."""
    schedule, scheduler = Linear(), ddpm.DDPMScheduler(timestep_spacing=spacing)
    for steps in range(1, T + 1):
        ours = (GRIDS[spacing](steps)(schedule)[:-1] * T - 1).round().long()
        scheduler.set_timesteps(steps)
        if spacing == "linspace" and steps == 1:
            assert ours.tolist() == [T - 1] and scheduler.timesteps.tolist() == [0]
        else:
            assert torch.equal(ours, scheduler.timesteps), steps


def test_trailing_differs_at_ties_only():
    """diffusers' np.arange(T, 0, -T/S) accumulates rounding errors: for 62 of the 1,000 numbers of steps it has an entry too many (-1,
    which is no time step), and it breaks some ties such as 937.5 downwards where exact arithmetic rounds to even."""
    scheduler, surplus, ties = ddpm.DDPMScheduler(timestep_spacing="trailing"), 0, 0
    for steps in range(1, T + 1):
        ours = (Trailing(steps)(Linear())[:-1] * T - 1).round().long()
        scheduler.set_timesteps(steps)
        surplus += len(scheduler.timesteps) - steps
        assert (scheduler.timesteps[steps:] == -1).all()
        for k in (ours != scheduler.timesteps[:steps]).nonzero().flatten().tolist():
            assert 2 * k * T % steps == 0 and (2 * k * T // steps) % 2 == 1  # T - k T/S is a whole number and a half
            assert abs(ours[k] - scheduler.timesteps[k]) == 1
            ties += 1
    assert surplus < 100 and ties < 500


def test_leading_with_an_offset():
    scheduler = ddim.DDIMScheduler(steps_offset=1)
    scheduler.set_timesteps(50)
    assert torch.equal((Leading(50, offset=1)(Linear())[:-1] * T - 1).round().long(), scheduler.timesteps)


# ---- DDPM


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("prediction", READS)
@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 13), ("trailing", 10), ("linspace", 7)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddpm(monkeypatch, name, spacing, steps, variance, prediction, dtype, tolerance):
    """Up to the last move, and it too where the grid ends in step 0; trailing's ends in step T/S - 1, and there diffusers, which asks
    whether t > 0 and not whether the move ends at clean data, adds noise to the final sample (trap 14)."""
    kind, settings = SCHEDULES[name]
    learned = variance == "learned_range"
    schedule, grid = kind(), GRIDS[spacing](steps)
    scheduler = ddpm.DDPMScheduler(
        **settings, variance_type=variance, prediction_type=prediction, clip_sample=False, timestep_spacing=spacing
    )
    scheduler.alphas_cumprod = table(schedule)
    monkeypatch.setattr(ddpm, "randn_tensor", Tape(dtype))
    scheduler.set_timesteps(steps)
    sampler = DDPM("learned" if learned else variance)
    x = theirs = first(dtype)
    states = sampler(denoiser(schedule, READS[prediction], learned), x, grid(schedule), Tape(dtype))
    for state, i in zip(states, scheduler.timesteps, strict=True):
        moved = scheduler.step(output(theirs, i.item(), learned), i, theirs)
        theirs = moved.prev_sample
        if prediction != "epsilon" or name != "squaredcos_cap_v2":  # there x_0 is 20,000 times eps' rounding
            assert_near(state.x0, moved.pred_original_sample, tolerance)
        if state.t > 0 or i == 0:
            assert_near(state.x, theirs, tolerance)
    assert torch.equal(state.x, state.x0)
    assert (theirs - state.x).abs().max() > 0.01 or spacing != "trailing" or variance == "fixed_small"


def test_ddpm_over_all_thousand_steps(monkeypatch):
    schedule = Linear()
    scheduler = ddpm.DDPMScheduler(clip_sample=False)
    scheduler.alphas_cumprod = table(schedule)
    monkeypatch.setattr(ddpm, "randn_tensor", Tape(torch.float64))
    theirs = first(torch.float64)
    states = DDPM()(denoiser(schedule, Epsilon()), theirs, Trailing(T)(schedule), Tape(torch.float64))
    for state, i in zip(states, scheduler.timesteps, strict=True):
        theirs = scheduler.step(output(theirs, i.item()), i, theirs).prev_sample
        assert_near(state.x, theirs, 1e-9)


def test_ddpm_with_diffusers_own_table_in_float32(monkeypatch):
    """Nothing set by us: its float32 tables and ours, 50 steps of 1000."""
    scheduler = ddpm.DDPMScheduler(clip_sample=False)
    scheduler.set_timesteps(50)
    monkeypatch.setattr(ddpm, "randn_tensor", Tape(torch.float32))
    theirs = first(torch.float32)
    states = DDPM()(denoiser(Linear(), Epsilon()), theirs, Leading(50)(Linear()), Tape(torch.float32))
    for state, i in zip(states, scheduler.timesteps, strict=True):
        theirs = scheduler.step(output(theirs, i.item()), i, theirs).prev_sample
        assert_near(state.x, theirs, 1e-4)


# ---- DDIM


def previous(i: int, steps: int) -> torch.Tensor:
    """diffusers' previous time: T // S steps earlier, whatever the grid says; before the first it is clean data."""
    return torch.tensor(max(0, i - T // steps + 1), dtype=torch.float64) / T


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("prediction", READS)
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 13), ("leading", 20), ("trailing", 20)])
@pytest.mark.parametrize("name", SCHEDULES)
def test_ddim(monkeypatch, name, spacing, steps, eta, prediction, dtype, tolerance):
    """Leading with any number of steps, and trailing with a divisor of T: there t - T // S is the grid's next entry."""
    kind, settings = SCHEDULES[name]
    schedule, grid = kind(), GRIDS[spacing](steps)
    scheduler = ddim.DDIMScheduler(**settings, prediction_type=prediction, clip_sample=False, timestep_spacing=spacing)
    scheduler.alphas_cumprod = table(schedule)
    scheduler.set_timesteps(steps)
    monkeypatch.setattr(ddim, "randn_tensor", Tape(dtype))
    x = theirs = first(dtype)
    states = DDIM(eta)(denoiser(schedule, READS[prediction]), x, grid(schedule), Tape(dtype))
    for state, i in zip(states, scheduler.timesteps, strict=True):
        theirs = scheduler.step(output(theirs, i.item()), i, theirs, eta=eta).prev_sample
        assert_near(state.x, theirs, tolerance)


@pytest.mark.parametrize("spacing", ["trailing", "linspace"])
@pytest.mark.parametrize("eta", [0.0, 0.5])
def test_ddim_differs_in_where_a_step_ends(monkeypatch, spacing, eta):
    """diffusers moves to t - T // S. With linspace, or trailing and S = 30, that is not the grid's next time: the next step then reads the
    network at another noise level than x has, and the last move may not end at clean data. A single move to *its* time is ours."""
    steps, schedule = 30, Linear()
    scheduler = ddim.DDIMScheduler(clip_sample=False, timestep_spacing=spacing)
    scheduler.alphas_cumprod = table(schedule)
    scheduler.set_timesteps(steps)
    denoise, x = denoiser(schedule, Epsilon()), first(torch.float64)
    missed = 0
    for i, j in pairwise([*scheduler.timesteps.tolist(), -1]):
        t, s = torch.tensor((i + 1) / T, dtype=torch.float64), previous(i, steps)
        monkeypatch.setattr(ddim, "randn_tensor", Tape(torch.float64))
        theirs = scheduler.step(output(x, i), i, x, eta=eta).prev_sample
        assert_near(step(x, denoise(x, t).x0, t, s, schedule, eta, Tape(torch.float64)), theirs, 1e-9)
        missed += round(s.item() * T) != j + 1
        x = theirs
    assert missed >= 10


def test_ddim_differs_in_what_clipping_leaves_of_eps():
    """diffusers clips x_0 and keeps eps unless use_clipped_model_output (trap 15); ours always derives it again."""
    schedule, x = Linear(), 3 * first(torch.float64)
    scheduler = ddim.DDIMScheduler(clip_sample=True)
    scheduler.alphas_cumprod = table(schedule)
    scheduler.set_timesteps(10)
    t, s = torch.tensor(0.701, dtype=torch.float64), torch.tensor(0.601, dtype=torch.float64)
    x0 = denoiser(schedule, Epsilon())(x, t).x0
    assert x0.abs().max() > 1
    ours = step(x, x0.clamp(-1, 1), t, s, schedule)
    assert_near(ours, scheduler.step(output(x, 700), 700, x, use_clipped_model_output=True).prev_sample, 1e-9)
    assert (ours - scheduler.step(output(x, 700), 700, x).prev_sample).abs().max() > 1e-3


# ---- Euler and Euler ancestral, which diffusers states in x/alpha


def double(module, monkeypatch) -> None:
    """diffusers' Euler schedulers cast the sample to torch.float32 in `step`; let that name float64 there."""

    class Torch(SimpleNamespace):
        float32 = torch.float64

        def __getattr__(self, name):
            return getattr(torch, name)

    monkeypatch.setattr(module, "torch", Torch())


FAMILIES = {
    "euler": (euler, "EulerDiscreteScheduler", Euler()),
    "ancestral": (ancestral, "EulerAncestralDiscreteScheduler", EulerAncestral()),
}


@pytest.mark.parametrize(("dtype", "tolerance"), PRECISIONS)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("spacing", "steps"), [("leading", 13), ("trailing", 15), ("linspace", 12)])
@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("family", FAMILIES)
def test_euler(monkeypatch, family, name, spacing, steps, prediction, dtype, tolerance):
    """x here is alpha times x there. Their linspace is fractional, with sigma/alpha linear between knots: `linear_in_sigma`.

    From cosine's s_0 = 20,291 the reference's float32 x is 20,291 z, whose last bit is 0.001: that, and no more, is allowed there."""
    module, kind_name, sampler = FAMILIES[family]
    kind, settings = SCHEDULES[name]
    schedule = kind(linear_in_sigma=True)
    grid = Linspace(steps, rounded=False) if spacing == "linspace" else GRIDS[spacing](steps)
    scheduler = getattr(module, kind_name)(**settings, prediction_type=prediction, timestep_spacing=spacing)
    scheduler.alphas_cumprod = table(schedule)
    scheduler.set_timesteps(steps)
    times = grid(schedule)
    alpha, sigma = schedule(times)
    np.testing.assert_allclose(scheduler.sigmas.numpy(), (sigma / alpha).numpy(), rtol=1e-5)  # its ladder, in float32
    scheduler.sigmas = (sigma / alpha).to(dtype)
    if dtype == torch.float64:
        double(module, monkeypatch)
    monkeypatch.setattr(module, "randn_tensor", Tape(dtype))
    x = sigma[0].to(dtype) * first(dtype)
    theirs = x / alpha[0].to(dtype)
    tolerance = max(tolerance, (sigma / alpha)[0].item() * torch.finfo(dtype).eps / 4)
    states = sampler(denoiser(schedule, READS[prediction]), x, times, Tape(dtype))
    for state, i, a in zip(states, scheduler.timesteps, alpha[1:], strict=True):
        index = (T * times[len(times) - 1 - steps] - 1).item()
        steps -= 1
        native = scheduler.scale_model_input(theirs, i)
        theirs = scheduler.step(output(native, index), i, theirs).prev_sample
        assert_near(state.x, a.to(dtype) * theirs, tolerance)


@pytest.mark.parametrize("family", FAMILIES)
def test_euler_differs_in_where_leading_starts(family):
    """init_noise_sigma is s_0 for trailing and linspace, as ours; sqrt(s_0^2 + 1) for leading, the deviation of x/alpha for data of
    deviation 1 (MATHS 6). Ours starts at s_0 z on every grid; at leading's s_0 = 9.4 the two differ by half a per cent."""
    module, name, _ = FAMILIES[family]
    for spacing, grid in (("leading", Leading(10)), ("trailing", Trailing(10)), ("linspace", Linspace(10))):
        scheduler = getattr(module, name)(timestep_spacing=spacing)
        scheduler.set_timesteps(10)
        alpha, sigma = Linear()(grid(Linear())[0])
        ours = (sigma / alpha).item()
        theirs = (ours**2 + 1) ** 0.5 if spacing == "leading" else ours
        assert float(scheduler.init_noise_sigma) == pytest.approx(theirs, rel=1e-5)
