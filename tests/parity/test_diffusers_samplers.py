"""Step-by-step parity with diffusers' deterministic schedulers: the same denoiser, every state.

Each scheduler is given our float64 table in the place of the float32 one it makes; the tolerance is 1e-9 where it then computes in
float64, and 1e-4 where it casts the sample to float32. Schedulers that move y = x/alpha are compared in x."""

import pytest
import torch
from scipy.stats import beta
from walks import LINEAR, at, begin, close, mixture, noise, ours, ratios

from diffusion import grids
from diffusion.samplers import DEIS, DPM2, DPMPP2M, DPMPP3M, IPNDM, LMS, PNDM, DDIMInversion, DPMSolver, DPMSolverPP, Euler, Heun, UniPC
from diffusion.samplers.blend import constant, exponential, log_ratio, weighted_sum, weights
from diffusion.schedules import VE, Flow

diffusers = pytest.importorskip("diffusers")
BETAS = LINEAR.betas().numpy()
N = 16
KARRAS = grids.Karras(N, sigma_max=100)


def table(grid=KARRAS):
    return ratios(grid(LINEAR), LINEAR)


def ready(name, steps=N, **config):
    scheduler = getattr(diffusers, name)(trained_betas=BETAS, **config)
    scheduler.set_timesteps(steps)
    return scheduler


def walk(scheduler, sigmas, seen, scaled, x=None):
    """Every state, from model outputs eps at the levels `seen`; `scaled` if the scheduler moves y = x/alpha."""
    scheduler.sigmas, states = sigmas, []
    scheduler.set_begin_index(0)
    levels = [*seen, torch.zeros((), dtype=torch.float64)]
    alphas = [(1 + s**2) ** -0.5 for s in levels]
    x = begin([at(seen[0], LINEAR)], LINEAR) if x is None else x
    y = x / alphas[0] if scaled else x
    for s, alpha, timestep in zip(seen, alphas[:-1], scheduler.timesteps, strict=True):
        eps = mixture()(y.double() * alpha if scaled else y, at(s, LINEAR)).eps
        y = scheduler.step(eps, timestep, y, return_dict=False)[0]
        states.append(y)
    after = torch.stack(alphas[1:])[:, None, None] if scaled else 1
    return after * torch.stack(states)


def compare(sampler, states, times, tolerance):
    close(ours(sampler, mixture(), begin(times, LINEAR), times), states, tolerance)


def test_euler():
    states = walk(ready("EulerDiscreteScheduler"), table(), table()[:-1], scaled=True)
    compare(Euler(), states, KARRAS(LINEAR), 1e-4)


def test_heun():
    sigmas = table()
    twice = torch.cat([sigmas[:1], sigmas[1:-1].repeat_interleave(2), sigmas[-1:]])
    states = walk(ready("HeunDiscreteScheduler"), twice, twice[:-1], scaled=True)
    compare(Heun(), torch.cat([states[1::2], states[-1:]]), KARRAS(LINEAR), 1e-9)


def test_dpm2():
    scheduler, sigmas = ready("KDPM2DiscreteScheduler"), table()
    middle = sigmas.log().lerp(sigmas.roll(1).log(), 0.5).exp()
    twice, halfway = (torch.cat([s[:1], s[1:].repeat_interleave(2), s[-1:]]) for s in (sigmas, middle))
    scheduler.sigmas_interpol = halfway
    seen = torch.stack([sigmas[:-1], middle[1:]], 1).flatten()[:-1]
    states = walk(scheduler, twice, seen, scaled=True)
    compare(DPM2(), torch.cat([states[1::2], states[-1:]]), KARRAS(LINEAR), 1e-9)


def test_lms():
    states = walk(ready("LMSDiscreteScheduler"), table(), table()[:-1], scaled=True)
    compare(LMS(), states, KARRAS(LINEAR), 1e-9)


@pytest.mark.parametrize("skip", [True, False])
def test_pndm(skip):
    """N divides T and T/N is even, as its integer time steps need; elsewhere its previous time step is not the next it visits."""
    scheduler = ready("PNDMScheduler", 20, skip_prk_steps=skip, set_alpha_to_one=True)
    scheduler.alphas_cumprod, scheduler.final_alpha_cumprod = torch.cumprod(1 - LINEAR.betas(), 0), torch.ones((), dtype=torch.float64)
    times, states = grids.Leading(20)(LINEAR), []
    x = begin(times, LINEAR)
    for timestep in scheduler.timesteps:
        eps = mixture()(x, (timestep.double() + 1) / 1000).eps
        x = scheduler.step(eps, timestep, x, return_dict=False)[0]
        states.append(x)
    whole = states[1:] if skip else [*states[3:12:4], *states[12:]]
    close(ours(PNDM(skip_prk_steps=skip), mixture(), begin(times, LINEAR), times), torch.stack(whole), 1e-9)


def test_ipndm():
    """Its own table is another schedule (alpha = cos, sigma = sin of its time); the moves are compared on ours."""
    scheduler = ready("IPNDMScheduler", 20)
    times, states = grids.Leading(20)(LINEAR), []
    scheduler.alphas, scheduler.betas = LINEAR(times)
    scheduler.set_begin_index(0)
    x = begin(times, LINEAR)
    for t, timestep, alpha, sigma in zip(times[:-1], scheduler.timesteps, scheduler.alphas, scheduler.betas, strict=False):
        v = (mixture()(x, t).eps - sigma * x) / alpha  # it makes eps = sigma x + alpha v
        x = scheduler.step(v, timestep, x, return_dict=False)[0]
        states.append(x)
    close(ours(IPNDM(), mixture(), begin(times, LINEAR), times), torch.stack(states), 1e-9)


class Halved(DPMPP3M):
    """3M as diffusers has it: its D2 is the second divided difference, which is half of the second derivative that phi_3 asks for."""

    def x0(self, past, s, schedule):
        moments = lambda delta, k: exponential(delta, k) * torch.tensor([1.0, 1.0, 0.5])[:k]  # noqa: E731
        w = weights([-log_ratio(t, schedule) for t, _ in past], -log_ratio(s, schedule), moments)
        return weighted_sum(w, [estimate.x0 for _, estimate in past])


MULTISTEP = dict(final_sigmas_type="zero", lower_order_final=False)


@pytest.mark.parametrize(
    ("sampler", "config"),
    [
        (DPMPP2M(), dict(solver_order=2, solver_type="midpoint")),
        (DPMPP2M("heun"), dict(solver_order=2, solver_type="heun")),
        (Halved(), dict(solver_order=3, solver_type="heun")),
    ],
    ids=["2M-midpoint", "2M-heun", "3M"],
)
def test_dpm_solver_pp_multistep(sampler, config):
    scheduler = ready("DPMSolverMultistepScheduler", algorithm_type="dpmsolver++", **config, **MULTISTEP)
    compare(sampler, walk(scheduler, table(), table()[:-1], scaled=False), KARRAS(LINEAR), 1e-4)


def descending(n, low=0.02):
    """n steps that do not go to 0, for the schedulers that cannot."""
    return at(100 * (low / 100) ** torch.linspace(0, 1, n + 1, dtype=torch.float64) ** 0.8, LINEAR)


def test_dpm_solver_multistep():
    """algorithm_type "dpmsolver", order 2, solver_type "heun" is DEIS of order 2: the line in log s, integrated over ds."""
    config = dict(algorithm_type="dpmsolver", solver_order=2, solver_type="heun", final_sigmas_type="sigma_min", lower_order_final=False)
    times = descending(N)
    sigmas = ratios(times, LINEAR)
    states = walk(ready("DPMSolverMultistepScheduler", **config), sigmas, sigmas[:-1], scaled=False)
    compare(DEIS(2), states, times, 1e-4)


class HalfSlope(DPMSolver):
    """diffusers' third order with "midpoint" takes half the slope at its second inner point too; the paper's alg. 2, k-diffusion and we
    take the slope's weighted average there. The error left by either is of the same order."""

    def average(self, nodes, end, closing):
        return weights(nodes, end, constant) if self.solver == "midpoint" and len(nodes) == 2 else super().average(nodes, end, closing)


class HalfSlopePP(HalfSlope, DPMSolverPP):
    """The same for DPM-Solver++."""


@pytest.mark.parametrize("steps", [12, 13, 14])
@pytest.mark.parametrize("solver", ["midpoint", "heun"])
@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("algorithm", ["dpmsolver", "dpmsolver++"])
def test_dpm_solver_singlestep(algorithm, order, solver, steps):
    plus = algorithm == "dpmsolver++"
    times = grids.Karras(steps, sigma_max=100)(LINEAR) if plus else descending(steps)
    if not plus and order == 3 and steps % 3 == 2:
        pytest.skip("diffusers closes with a shorter step of order 2 where it ends above 0; ours always closes with order 1")
    sampler = (HalfSlopePP if plus else HalfSlope)(order, solver)
    config = dict(algorithm_type=algorithm, solver_order=order, solver_type=solver, lower_order_final=True)
    scheduler = ready("DPMSolverSinglestepScheduler", steps, final_sigmas_type="zero" if plus else "sigma_min", **config)
    sigmas = ratios(times, LINEAR)
    compare(sampler, walk(scheduler, sigmas, sigmas[:-1], scaled=False), times, 1e-9)


@pytest.mark.parametrize("variant", ["bh1", "bh2"])
@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc(order, variant):
    """bh1 to a positive level: diffusers multiplies 0 by infinity on the step to sigma = 0."""
    times = KARRAS(LINEAR) if variant == "bh2" else descending(N)
    scheduler = ready("UniPCMultistepScheduler", solver_order=order, solver_type=variant, final_sigmas_type="zero")
    sigmas = ratios(times, LINEAR)
    compare(UniPC(order, variant), walk(scheduler, sigmas, sigmas[:-1], scaled=False), times, 1e-9)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_deis(order):
    """To a positive level: its last step, if not lowered, takes the log of 0."""
    times = descending(N)
    sigmas = ratios(times, LINEAR)
    scheduler = ready("DEISMultistepScheduler", solver_order=order, lower_order_final=False)
    compare(DEIS(order), walk(scheduler, sigmas, sigmas[:-1], scaled=False), times, 1e-9)


def test_ddim_inverse():
    scheduler = ready("DDIMInverseScheduler", 20, set_alpha_to_one=True, clip_sample=False)
    scheduler.alphas_cumprod, scheduler.initial_alpha_cumprod = torch.cumprod(1 - LINEAR.betas(), 0), torch.ones((), dtype=torch.float64)
    image, states = 0.5 * noise(), []
    x = image
    for timestep in scheduler.timesteps:
        x = scheduler.step(mixture()(x, (timestep.double() + 1) / 1000).eps, timestep, x, return_dict=False)[0]
        states.append(x)
    close(ours(DDIMInversion(), mixture(), image, grids.Leading(20)(LINEAR)), torch.stack(states), 1e-9)


@pytest.mark.parametrize(
    ("name", "sampler", "config", "tolerance"),
    [
        ("EDMEulerScheduler", Euler(), {}, 1e-4),
        ("EDMDPMSolverMultistepScheduler", DPMPP2M(), dict(solver_order=2, lower_order_final=False), 1e-9),
        ("EDMDPMSolverMultistepScheduler", DPMPP2M("heun"), dict(solver_order=2, solver_type="heun", lower_order_final=False), 1e-9),
        ("EDMDPMSolverMultistepScheduler", Halved(), dict(solver_order=3, solver_type="heun", lower_order_final=False), 1e-9),
    ],
    ids=["euler", "2M", "2M-heun", "3M"],
)
def test_edm(name, sampler, config, tolerance):
    schedule = VE(sigma_min=0.002, sigma_max=80)
    times = grids.EDM(N)(schedule)
    scheduler = getattr(diffusers, name)(**config)
    scheduler.set_timesteps(N)
    torch.testing.assert_close(scheduler.sigmas.double(), ratios(times, schedule), rtol=1e-5, atol=1e-12)  # the ladder
    scheduler.sigmas, oracle, states = ratios(times, schedule), mixture(schedule), []
    scheduler.set_begin_index(0)
    x = begin(times, schedule)
    for t, s, timestep in zip(times, scheduler.sigmas, scheduler.timesteps, strict=False):
        skip, out = 0.25 / (s**2 + 0.25), s * 0.5 / (s**2 + 0.25).sqrt()
        x = scheduler.step((oracle(x, t).x0 - skip * x) / out, timestep, x, return_dict=False)[0]
        states.append(x)
    close(ours(sampler, oracle, begin(times, schedule), times), torch.stack(states), tolerance)


def flow_walk(name, steps, sigmas, seen):
    scheduler, states = getattr(diffusers, name)(), []
    scheduler.set_timesteps(steps)
    scheduler.sigmas = sigmas
    scheduler.set_begin_index(0)
    x = noise()
    for s, timestep in zip(seen, scheduler.timesteps, strict=True):
        estimate = mixture(Flow())(x, s)
        x = scheduler.step(estimate.eps - estimate.x0, timestep, x, return_dict=False)[0]
        states.append(x)
    return torch.stack(states)


def test_flow_euler():
    """Euler on x_t itself and Euler on x/alpha are the same move: both hold eps and x_0."""
    times = torch.linspace(1, 0, N + 1, dtype=torch.float64)
    close(ours(Euler(), mixture(Flow()), noise(), times), flow_walk("FlowMatchEulerDiscreteScheduler", N, times, times[:-1]), 1e-4)


def test_flow_heun():
    """Differs by definition: diffusers averages the velocities eps - x_0 over dt, EDM's Heun averages eps over d(sigma/alpha).

    Both are of second order for the same path, so that their distance falls by four for twice the steps."""
    distance = []
    for n in (32, 64):
        times = torch.linspace(1, 0, n + 1, dtype=torch.float64)
        twice = torch.cat([times[:1], times[1:-1].repeat_interleave(2), times[-1:]])
        theirs = flow_walk("FlowMatchHeunDiscreteScheduler", n, twice, twice[:-1])[-1]
        distance.append((ours(Heun(), mixture(Flow()), noise(), times)[-1] - theirs).norm().item())
    assert 0 < distance[0] < 0.05
    assert 3 < distance[0] / distance[1] < 5


@pytest.mark.parametrize(
    ("name", "sampler", "config", "tolerance"),
    [
        ("DPMSolverMultistepScheduler", DPMPP2M(), dict(solver_order=2, lower_order_final=False), 1e-4),
        ("UniPCMultistepScheduler", UniPC(), dict(solver_order=2), 1e-9),
        ("UniPCMultistepScheduler", UniPC(3), dict(solver_order=3), 1e-9),
    ],
    ids=["2M", "unipc-2", "unipc-3"],
)
def test_use_flow_sigmas(name, sampler, config, tolerance):
    """The same on alpha = 1 - t, sigma = t; from 0.99, because diffusers takes the log of alpha = 0 at 1."""
    times = torch.cat([torch.linspace(0.99, 0.05, N, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)])
    scheduler = getattr(diffusers, name)(prediction_type="flow_prediction", use_flow_sigmas=True, **config)
    scheduler.set_timesteps(N)
    scheduler.set_begin_index(0)
    scheduler.sigmas, x, states = times, begin(times, Flow()), []
    for t, timestep in zip(times, scheduler.timesteps, strict=False):
        estimate = mixture(Flow())(x, t)
        x = scheduler.step(estimate.eps - estimate.x0, timestep, x, return_dict=False)[0]
        states.append(x)
    close(ours(sampler, mixture(Flow()), begin(times, Flow()), times), torch.stack(states), tolerance)


LADDERS = {"use_karras_sigmas": grids.Karras, "use_exponential_sigmas": grids.Exponential}


@pytest.mark.parametrize("steps", [2, 7, 30])
@pytest.mark.parametrize("option", LADDERS)
def test_ladders(option, steps):
    """With timestep_spacing "linspace" its ladders go between the schedule's own ends, as ours do."""
    scheduler = ready("EulerDiscreteScheduler", steps, timestep_spacing="linspace", **{option: True})
    torch.testing.assert_close(ratios(LADDERS[option](steps)(LINEAR), LINEAR), scheduler.sigmas.double(), rtol=1e-4, atol=1e-9)


def test_its_beta_sigmas_are_not_the_papers():
    """2407.12173 gives a beta distribution to the time steps, and so does ours; diffusers gives it to sigma, of which the upper half
    is little of the time: nearly all of its steps are at high noise."""
    theirs = ready("EulerDiscreteScheduler", 30, timestep_spacing="linspace", use_beta_sigmas=True).sigmas.double()[:-1]
    share, even = (theirs - theirs[-1]) / (theirs[0] - theirs[-1]), torch.linspace(1, 0, 30, dtype=torch.float64)
    torch.testing.assert_close(share, torch.from_numpy(beta.ppf(even.numpy(), 0.6, 0.6)), rtol=1e-4, atol=1e-5)
    assert (at(theirs, LINEAR) > 0.5).sum() > 20
    assert (grids.Beta(30)(LINEAR) > 0.5).sum() == 16  # of 31 times


@pytest.mark.parametrize("steps", [2, 7, 30])
def test_log_snr_is_its_lu_ladder(steps):
    scheduler = ready("DPMSolverMultistepScheduler", steps, use_lu_lambdas=True)
    torch.testing.assert_close(ratios(grids.LogSNR(steps)(LINEAR), LINEAR), scheduler.sigmas.double(), rtol=2e-4, atol=1e-9)


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("steps", [5, 20, 50])
def test_time_steps(spacing, steps):
    scheduler = ready("DDIMScheduler", steps, timestep_spacing=spacing)
    grid = {"leading": grids.Leading, "trailing": grids.Trailing, "linspace": grids.Linspace}[spacing](steps)
    torch.testing.assert_close(1000 * grid(LINEAR)[:-1] - 1, scheduler.timesteps.double(), rtol=0, atol=1e-9)
