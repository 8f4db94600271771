"""What every deterministic sampler keeps to, and the equivalences between them."""

from dataclasses import FrozenInstanceError

import pytest
import torch

from diffusion import grids
from diffusion.denoiser import Denoiser, Estimate
from diffusion.generate import Asked
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import V, Velocity
from diffusion.samplers import (
    DEIS,
    DPM2,
    DPMPP2M,
    DPMPP3M,
    EDM,
    IPNDM,
    LMS,
    PNDM,
    RK45,
    DDIMInversion,
    DPMAdaptive,
    DPMSolver,
    DPMSolverPP,
    Euler,
    Heun,
    UniPC,
    last,
)
from diffusion.samplers.blend import constant, exponential, weights
from diffusion.schedules import VE, Cosine, Flow, Linear

SAMPLERS = [
    Euler(),
    Heun(),
    EDM(),
    DPM2(),
    LMS(),
    PNDM(),
    PNDM(skip_prk_steps=True),
    IPNDM(),
    DPMSolver(),
    DPMSolver(3),
    DPMSolverPP(),
    DPMSolverPP(3),
    DPMPP2M(),
    DPMPP3M(),
    UniPC(),
    UniPC(3, "bh1"),
    DEIS(),
    RK45(),
    DPMAdaptive(),
    DPMAdaptive(order=2),
]
SCHEDULES = [Linear(), Cosine(), VE(), Flow(), Flow(shift=3), Linear(zero_terminal_snr=True), Cosine(zero_terminal_snr=True)]
MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.3], [0.1, -1.0]], dtype=torch.float64)
named = pytest.mark.parametrize("sampler", SAMPLERS, ids=str)


def mixture(schedule):
    return GaussianMixture(MEANS, torch.tensor([0.3, 0.5, 0.4]), schedule=schedule)


def start(times, schedule, seed=0, dtype=torch.float64):
    return schedule(times[0])[1] * torch.randn(5, 2, dtype=dtype, generator=torch.Generator().manual_seed(seed))


def same_noise():
    generator = torch.Generator().manual_seed(7)
    return lambda x: torch.randn(x.shape, dtype=x.dtype, generator=generator)


@named
@pytest.mark.parametrize("schedule", SCHEDULES, ids=str)
@pytest.mark.parametrize("steps", [1, 2, 3, 10])
def test_finite_from_pure_noise_to_exactly_zero(sampler, schedule, steps):
    times = grids.Trailing(steps)(schedule)
    states = list(sampler(mixture(schedule), start(times, schedule), times, same_noise()))
    assert all(state.x.isfinite().all() and state.x0.isfinite().all() for state in states)
    assert states[-1].t == 0
    assert states[-1].x.shape == (5, 2)
    assert isinstance(sampler, RK45 | DPMAdaptive) or [state.t for state in states] == list(times[1:])


@named
@pytest.mark.parametrize("schedule", [Linear(), Flow(), Cosine(zero_terminal_snr=True)], ids=str)
def test_one_true_x0_is_reached_whatever_the_path(sampler, schedule):
    """With one data point the path is straight in sigma/alpha, eps and x_0 are constant along it, and no formula can miss."""
    oracle = GaussianMixture(MEANS[:1], torch.zeros(1), schedule=schedule)
    times = grids.Trailing(9)(schedule)
    x = last(sampler(oracle, start(times, schedule), times, same_noise())).x
    torch.testing.assert_close(x, MEANS[:1].expand(5, -1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("sampler", [s for s in SAMPLERS if s != PNDM()], ids=str)  # whose warm-up stops halfway in t, not in s
@pytest.mark.parametrize("schedule", [Linear(), Flow(), Cosine(zero_terminal_snr=True)], ids=str)
def test_one_ladder_is_one_path_on_every_schedule(sampler, schedule):
    """In x/alpha along sigma/alpha all schedules are one (EDM eq. 4): the native moves must not know which they are on."""

    def path(schedule):
        times = grids.Karras(9, sigma_min=0.02, sigma_max=60)(schedule)
        states = sampler(mixture(schedule), start(times, schedule), times, same_noise())
        return torch.stack([state.x / schedule(state.t)[0] for state in states])

    torch.testing.assert_close(path(schedule), path(VE(sigma_min=0.01, sigma_max=100)), rtol=1e-7, atol=1e-9)


@named
def test_two_runs_of_one_object_interleaved_equal_two_runs_apart(sampler):
    schedule = Linear()
    times = [grids.Karras(n)(schedule) for n in (8, 11)]
    begin = [start(t, schedule, seed) for seed, t in enumerate(times)]
    apart = [list(sampler(mixture(schedule), x, t, same_noise())) for x, t in zip(begin, times, strict=True)]
    runs, together = [sampler(mixture(schedule), x, t, same_noise()) for x, t in zip(begin, times, strict=True)], ([], [])
    while any(len(a) < len(b) for a, b in zip(together, apart, strict=True)):
        for run, states in zip(runs, together, strict=True):
            states.extend([state] if (state := next(run, None)) else [])
    for mine, alone in zip(together, apart, strict=True):
        assert all(torch.equal(a.x, b.x) for a, b in zip(mine, alone, strict=True))


@named
def test_images_do_not_depend_on_the_batch(sampler):
    schedule = Linear()
    times = grids.Karras(8)(schedule)
    x = start(times, schedule)
    whole = last(sampler(mixture(schedule), x, times, torch.zeros_like)).x
    parts = [last(sampler(mixture(schedule), part, times, torch.zeros_like)).x for part in x.split(2)]
    torch.testing.assert_close(whole, torch.cat(parts), rtol=1e-12, atol=1e-12)


@named
@pytest.mark.parametrize("read", [V(), Velocity()], ids=lambda read: type(read).__name__)
def test_a_float32_network_at_alpha_0(sampler, read):
    class Net(torch.nn.Module):
        def forward(self, x, label, cond):
            return 0.5 * x.sin()

    denoise = Asked(Denoiser(Net(), Flow(), read), None)
    times = grids.Trailing(6)(Flow())
    state = last(sampler(denoise, torch.randn(3, 1, 4, 4), times, torch.randn_like))
    assert state.x.dtype == torch.float32
    assert state.x.isfinite().all()


@named
def test_frozen_and_constructible_with_no_argument(sampler):
    type(sampler)()
    with pytest.raises(FrozenInstanceError):
        sampler.order = 7


@pytest.mark.parametrize(
    ("sampler", "calls"),
    [
        (Euler(), 12),
        (Heun(), 23),
        (DPM2(), 23),
        (LMS(), 12),
        (PNDM(), 12 + 9),
        (PNDM(skip_prk_steps=True), 13),
        (DPMSolver(3), 12),
        (DPMSolverPP(2), 12),
        (DPMPP3M(), 12),
        (UniPC(), 12),
        (DDIMInversion(), 12),
        (DDIMInversion(refinements=2), 36),
    ],
    ids=str,
)
def test_calls_of_the_denoiser(sampler, calls):
    denoise = Asked(mixture(Linear()), None)
    times = grids.Karras(12)(Linear())
    last(sampler(denoise, start(times, Linear()), times))
    assert denoise.nfe == calls


@pytest.mark.parametrize("steps", range(1, 14))
@pytest.mark.parametrize("order", [1, 2, 3])
def test_dpm_solver_goes_over_every_step_once(order, steps):
    orders = DPMSolver(order).orders(steps)
    assert sum(orders) == steps
    assert orders[-1] == 1
    assert orders[: (steps - 1) // order] == [order] * ((steps - 1) // order)


@pytest.mark.parametrize("sampler", [LMS(1), DEIS(1), IPNDM(1), DPMSolver(1), DPMSolverPP(1)], ids=str)
@pytest.mark.parametrize("schedule", [Linear(), Flow()], ids=str)
def test_order_1_is_euler(sampler, schedule):
    times = grids.Trailing(10)(schedule)
    x = start(times, schedule)
    expected = last(Euler()(mixture(schedule), x, times)).x
    torch.testing.assert_close(last(sampler(mixture(schedule), x, times)).x, expected, rtol=1e-12, atol=1e-12)


def test_dpm_solver_2_is_dpm2_on_half_the_grid():
    """On 2n + 1 steps uniform in lambda the inner times are DPM2's own; its last move is the same first-order one."""
    times = grids.LogSNR(13)(Linear())
    x = start(times, Linear())
    fine, coarse = (
        list(DPMSolver(2)(mixture(Linear()), x, times)),
        list(DPM2()(mixture(Linear()), x, torch.cat([times[:13:2], times[-1:]]))),
    )
    torch.testing.assert_close(
        torch.stack([s.x for s in [*fine[1::2], fine[-1]]]), torch.stack([s.x for s in coarse]), rtol=1e-9, atol=1e-9
    )


def test_inversion_and_back():
    """A fixed point is DDIM's exact inverse; without refinements the way back misses, less with more steps."""
    schedule, image = Linear(), 0.5 * MEANS

    def miss(refinements, steps):
        times = grids.Karras(steps, sigma_max=20)(schedule)
        noise = last(DDIMInversion(refinements)(mixture(schedule), image, times)).x
        return (last(Euler()(mixture(schedule), noise, times)).x - image).norm().item()

    assert miss(60, 20) < 1e-8
    assert miss(2, 20) < miss(0, 20) / 3
    assert miss(0, 160) < miss(0, 20) / 4


def test_inversion_climbs_the_grid():
    times = grids.Leading(5)(Linear())
    states = list(DDIMInversion()(mixture(Linear()), MEANS, times))
    assert [state.t for state in states] == list(times.flip(0)[1:])


@pytest.mark.parametrize("moments", [constant, exponential])
@pytest.mark.parametrize("end", [-0.7, 0.4, 3.0])
def test_weights_integrate_polynomials_exactly(moments, end):
    """Against numerical integration of u^j e^(delta u) on a fine grid."""
    nodes = torch.tensor([0.3, 0.9, 1.7, 2.2], dtype=torch.float64)
    delta = torch.tensor(end, dtype=torch.float64) - nodes[0]
    u = torch.linspace(0, 1, 20001, dtype=torch.float64)
    density = torch.ones_like(u) if moments is constant else (delta * u).exp()
    for j in range(4):
        value = sum(w * n**j for w, n in zip(weights(list(nodes), nodes[0] + delta, moments), nodes, strict=True))
        curve = (nodes[0] + delta * u) ** j * density
        torch.testing.assert_close(value, torch.trapezoid(curve, u) / torch.trapezoid(density, u), rtol=1e-7, atol=1e-7)


def test_weights_at_infinity():
    node, inf = torch.tensor(1.0, dtype=torch.float64), torch.tensor(torch.inf, dtype=torch.float64)
    assert weights([node, node + 1], inf, exponential) == [1, 0]
    assert weights([-inf, node], node + 1, constant) == [1, 0]
    assert weights([node, -inf, node - 1], node + 1, constant) == [1.5, 0, -0.5]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: LMS(5), "order=5 of LMS must be between 1 and 4"),
        (lambda: DPMSolver(0), "order=0 of DPMSolver must be between 1 and 3"),
        (lambda: DPMSolver(2, "taylor"), "sampler.solver=taylor is not one of midpoint, heun"),
        (lambda: DPMPP2M("taylor"), "sampler.solver=taylor is not one of midpoint, heun"),
        (lambda: UniPC(4), "order=4 of UniPC must be between 1 and 3"),
        (lambda: UniPC(2, "vary"), "sampler.variant=vary is not one of bh1, bh2"),
        (lambda: RK45(rtol=0), "rtol=0 of RK45 must be above 0"),
        (lambda: DPMAdaptive(order=4), "order=4 of DPMAdaptive must be between 2 and 3"),
        (lambda: DDIMInversion(-1), "refinements=-1 of DDIMInversion must be at least 0"),
        (lambda: Heun(s_churn=-1), "s_churn=-1 of Heun must be at least 0"),
    ],
)
def test_bad_settings_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_estimates_are_handed_on():
    """A State's x0 is the denoiser's own estimate, not the average a move was made with."""

    class Constant(Asked):
        def __call__(self, x, t):
            return Estimate(torch.ones_like(x), x)

    times = grids.Karras(6)(Linear())
    for sampler in SAMPLERS[:-1]:
        assert all((state.x0 == 1).all() for state in sampler(Constant(mixture(Linear()), None), start(times, Linear()), times))
