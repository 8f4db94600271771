"""Noise schedules against the forward chain, written out in numpy."""

from dataclasses import FrozenInstanceError, fields, replace
from math import cos, pi

import numpy as np
import pytest
import torch

from diffusion.grids import EDM as EDMGrid
from diffusion.schedules import EDM, VE, VESDE, VPSDE, Betas, Cosine, Flow, Linear, Quadratic, ScaledLinear, Sigmoid, SubVP

F64 = {"dtype": torch.float64}
VP = [Linear, Cosine, Quadratic, ScaledLinear, Sigmoid]
EVERY = [
    *(kind(1000) for kind in VP),
    *(kind(100) for kind in VP),
    *(kind(1000, zero_terminal_snr=True) for kind in VP),
    *(kind(1000, linear_in_sigma=True) for kind in VP),
    Cosine(4000),
    Cosine(30, zero_terminal_snr=True, linear_in_sigma=True),
    VE(),
    VE(200, sigma_min=0.02, sigma_max=348.0),
    VE(linear_in_sigma=True),
    Flow(),
    Flow(shift=3.0),
    VESDE(),
    VESDE(sigma_min=0.02, sigma_max=348.0),
    EDM(),
    EDM(sigma_min=0.01, sigma_max=10.0, rho=3.0),
    VPSDE(),
    VPSDE(beta_min=0.5, beta_max=5.0),
    SubVP(),
]


def betas(kind: type, T: int) -> np.ndarray:
    """MATHS: the papers' formulas, loop by loop, t = 0..T-1."""
    scale, ramp = 1000 / T, [t / (T - 1) for t in range(T)]
    low, high = (0.00085, 0.012) if kind is ScaledLinear else (1e-4, 0.02)
    if kind is Linear:
        return np.array([scale * (low + u * (high - low)) for u in ramp])
    if kind is Sigmoid:
        return np.array([scale * (low + (high - low) / (1 + np.exp(6 * (1 - 2 * u)))) for u in ramp])
    if kind is Cosine:
        abar = [cos((t / T + 0.008) / 1.008 * pi / 2) ** 2 for t in range(T + 1)]
        return np.array([min(0.999, 1 - abar[t + 1] / abar[t]) for t in range(T)])
    return np.array([scale * (low**0.5 + u * (high**0.5 - low**0.5)) ** 2 for u in ramp])


def chain(beta: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(alpha, sigma) after each step x <- sqrt(1 - beta) x + sqrt(beta) eps: the gain, and the root of the noise's variance."""
    variance = np.zeros(len(beta))
    for i, b in enumerate(beta):
        variance[i] = b + (1 - b) * (variance[i - 1] if i else 0.0)
    return np.cumprod(np.sqrt(1 - beta)), np.sqrt(variance)


def knots(T: int) -> torch.Tensor:
    return torch.arange(1, T + 1, **F64) / T


@pytest.mark.parametrize("kind", VP)
@pytest.mark.parametrize("T", [60, 100, 1000, 4000])
def test_the_knots_are_the_forward_chain(kind, T):
    alpha, sigma = kind(T)(knots(T))
    expected_alpha, expected_sigma = chain(betas(kind, T))
    np.testing.assert_allclose(alpha.numpy(), expected_alpha, rtol=1e-11)
    np.testing.assert_allclose(sigma.numpy(), expected_sigma, rtol=1e-11)
    np.testing.assert_allclose((alpha**2).numpy(), np.cumprod(1 - betas(kind, T)), rtol=1e-11)


@pytest.mark.parametrize("kind", VP)
def test_zero_terminal_snr_is_algorithm_1_of_lin_et_al(kind):
    alpha, sigma = kind(zero_terminal_snr=True)(knots(1000))
    root = np.sqrt(np.cumprod(1 - betas(kind, 1000)))
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(alpha[:-1].numpy(), expected[:-1], rtol=1e-9)
    assert alpha[-1] == 0 and sigma[-1] == 1
    assert alpha[0].item() == pytest.approx(root[0], rel=1e-12)
    assert kind(zero_terminal_snr=True).reaches_noise and not kind().reaches_noise


@pytest.mark.parametrize("kind", [Linear, Quadratic, Sigmoid, ScaledLinear])
def test_another_number_of_steps_ends_at_about_the_same_noise(kind):
    """Trap 8: without the factor 1000/T, sqrt(abar_T) of linear at T = 100 is 0.60; with it 0.0045, and 0.0064 at T = 1000."""
    small, usual, large = (kind(T)(torch.ones((), **F64))[0].log().item() for T in (100, 1000, 4000))
    assert small == pytest.approx(usual, rel=0.1) and large == pytest.approx(usual, rel=0.01)
    assert np.cumprod(np.sqrt(1 - betas(Linear, 100) / 10))[-1] == pytest.approx(0.60, abs=0.005)


def test_too_few_steps_for_a_beta_are_refused():
    """Trap 8: beta_T = 0.02 x 1000/20 = 1."""
    with pytest.raises(ValueError, match=r"Linear with num_timesteps=20 has a beta of 1, outside \(0, 1\); use more time steps"):
        Linear(20)
    Linear(21), Cosine(2)
    for make in (lambda: Quadratic(15), lambda: Sigmoid(15)):
        with pytest.raises(ValueError, match="has a beta of"):
            make()
    with pytest.raises(ValueError, match="num_timesteps=1 of Cosine must be between 2 and 100000"):
        Cosine(1)
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        VE(sigma_min=2.0, sigma_max=1.0)


@pytest.mark.parametrize(("T", "amplification"), [(1000, 20_291), (4000, 81_165)])
def test_cosine_ends_where_the_clipped_betas_do(T, amplification):
    """Traps 9, 10 and MATHS 1: abar is the product of the clipped betas; unclipped it is cos^2(pi/2) = 0."""
    alpha, _ = Cosine(T)(torch.ones((), **F64))
    assert 1 / alpha.item() == pytest.approx(amplification, abs=0.5)
    exact = betas(Cosine, T)
    assert exact[-1] == 0.999 and (exact < 0.999)[:-1].all()


def test_max_beta_clips():
    alpha, _ = Cosine(50, max_beta=0.1)(knots(50))
    np.testing.assert_allclose((alpha**2).numpy(), np.cumprod(1 - np.minimum(betas(Cosine, 50), 0.1)), rtol=1e-12)


def test_ve_is_geometric():
    alpha, sigma = VE(10, sigma_min=0.01, sigma_max=50.0)(knots(10))
    assert (alpha == 1).all()
    np.testing.assert_allclose(sigma.numpy(), np.geomspace(0.01, 50, 10), rtol=1e-12)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_the_time_of_a_label(schedule):
    t = knots(100)[4:]  # from 0.05: below the first knot, 1/30 at most here, all labels are 0
    torch.testing.assert_close(schedule.labelled(schedule.label(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("shift", [1.0, 3.0, 0.5])
def test_flow_is_a_straight_path(shift):
    t = torch.linspace(0, 1, 101, **F64)
    alpha, sigma = Flow(shift)(t)
    u = shift * t / (1 + (shift - 1) * t)
    torch.testing.assert_close(alpha, 1 - u, rtol=0, atol=1e-14)
    torch.testing.assert_close(sigma, u, rtol=0, atol=1e-14)
    assert alpha[-1] == 0 and sigma[-1] == 1 and alpha[0] == 1 and Flow(shift).reaches_noise


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_no_noise_at_zero_and_more_with_time(schedule):
    t = torch.linspace(0, 1, 2501, **F64)
    alpha, sigma = schedule(t)
    assert sigma[0] == 0 and alpha[0] == 1 and schedule.log_snr(t)[0] == float("inf")
    assert (sigma.diff() >= 0).all() and (alpha.diff() <= 0).all() and (schedule.log_snr(t).diff() < 0).all()
    assert alpha.isfinite().all() and sigma.isfinite().all()


@pytest.mark.parametrize("schedule", [s for s in EVERY if isinstance(s, Betas | VPSDE) and not isinstance(s, SubVP)], ids=repr)
def test_variance_preserving_between_knots_too(schedule):
    alpha, sigma = schedule(torch.linspace(0, 1, 1237, **F64))
    torch.testing.assert_close(alpha**2 + sigma**2, torch.ones(1237, **F64), rtol=0, atol=1e-14)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_time_is_the_inverse_of_log_snr(schedule):
    """At knots, between them, before the first and after the last but one."""
    t = torch.cat([torch.linspace(0, 1, 997, **F64), knots(1000), torch.tensor([1e-7, 1e-4, 0.9995, 0.99999], **F64)])
    torch.testing.assert_close(schedule.time(schedule.log_snr(t)), t, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_times_beyond_the_ends_are_the_ends(schedule):
    low = schedule.log_snr(torch.ones((), **F64)).item()
    values = torch.tensor([float("inf"), 1e6, low - 1e-3, low - 100, float("-inf")], **F64)
    time = schedule.time(values)
    assert time.isfinite().all() and time[0] == 0 and time[1] == pytest.approx(0, abs=1e-12)
    assert time[2].item() == pytest.approx(1, abs=1e-3) and (time <= 1).all() and time[-1] == 1


def test_between_knots_the_log_or_the_ratio_itself_is_linear():
    t = torch.tensor([3.0, 3.25, 4.0], **F64) / 10
    for linear, f in ((False, torch.log), (True, lambda x: x)):
        alpha, sigma = Cosine(10, linear_in_sigma=linear)(t)
        a, middle, b = f(sigma / alpha)
        assert middle.item() == pytest.approx((0.75 * a + 0.25 * b).item(), rel=1e-12)


@pytest.mark.parametrize("schedule", [Linear(), Cosine(100, zero_terminal_snr=True)], ids=repr)
def test_the_ends_of_the_table(schedule):
    """Below the first knot sigma/alpha falls linearly to 0; to a last knot of pure noise, alpha/sigma does."""
    T = schedule.num_timesteps
    alpha, sigma = schedule(torch.tensor([0.25, 0.5, 1.0], **F64) / T)
    ratio = sigma / alpha
    torch.testing.assert_close(ratio / ratio[-1], torch.tensor([0.25, 0.5, 1.0], **F64), rtol=1e-12, atol=0)
    if schedule.reaches_noise:
        alpha, sigma = schedule((T - torch.tensor([1.0, 0.5, 0.25, 0.0], **F64)) / T)
        ratio = alpha / sigma
        torch.testing.assert_close(ratio / ratio[0], torch.tensor([1.0, 0.5, 0.25, 0.0], **F64), rtol=1e-9, atol=0)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
@pytest.mark.parametrize("shape", [(), (7,)])
def test_the_answer_has_the_question_s_type_and_shape(schedule, shape):
    t = torch.full(shape, 0.37, dtype=torch.float32)
    for value, exact in zip(schedule(t), schedule(t.double()), strict=True):
        assert value.dtype == torch.float32 and exact.dtype == torch.float64 and value.shape == shape
        assert torch.equal(value, exact.float())  # computed in float64, rounded once
    assert schedule.time(torch.zeros(shape)).dtype == torch.float32


def test_labels_are_what_the_networks_of_this_field_count():
    assert torch.equal(Cosine(1000).label(torch.tensor([0.001, 0.5, 1.0], **F64)), torch.tensor([0.0, 499.0, 999.0], **F64))
    assert Linear(4000).label(torch.ones((), **F64)) == 3999
    assert Linear(1000).label(torch.tensor(0.0505, **F64)).item() == pytest.approx(49.5)
    assert Linear(1000).label(torch.tensor(1e-5, **F64)) == 0
    assert Flow().label(torch.tensor(0.5, **F64)) == 500


def test_schedules_are_values():
    assert Cosine() == Cosine() and hash(Cosine()) == hash(Cosine()) and Cosine() != Cosine(500) and Quadratic() != Linear()
    assert ScaledLinear(beta_start=1e-4, beta_end=0.02) != Quadratic()
    assert replace(Linear(), num_timesteps=500).betas()[0].item() == pytest.approx(2e-4)
    with pytest.raises(FrozenInstanceError):
        Cosine().s = 0.1
    for kind in (*VP, VE, Flow, VESDE, VPSDE, SubVP, EDM):
        with pytest.raises(TypeError, match="beta_statr"):
            kind(beta_statr=1e-4)


def test_a_table_first_used_in_inference_mode_serves_training_too():
    schedule = Cosine(777)
    with torch.inference_mode():
        schedule(torch.rand(3, **F64))
    x = torch.ones(3, requires_grad=True, **F64)
    alpha, _ = schedule(torch.full((3,), 0.5, **F64))
    (alpha * x**2).sum().backward()
    assert torch.equal(x.grad, 2 * alpha)


# ---- continuous time


def ode(beta, t: float, steps: int = 20_000) -> tuple[float, float]:
    """(mean's factor, variance) at t of dx = -beta x / 2 dt + sqrt(g2) dw from a point: RK4 on dm = -beta m / 2, dv = -beta v + g2."""
    drift, g2 = beta
    m, v, h = 1.0, 0.0, t / steps

    def slope(u, m, v):
        return -drift(u) * m / 2, -drift(u) * v + g2(u)

    for i in range(steps):
        u = i * h
        a = slope(u, m, v)
        b = slope(u + h / 2, m + h / 2 * a[0], v + h / 2 * a[1])
        c = slope(u + h / 2, m + h / 2 * b[0], v + h / 2 * b[1])
        d = slope(u + h, m + h * c[0], v + h * c[1])
        m, v = (x + h / 6 * (p + 2 * q + 2 * r + w) for x, p, q, r, w in zip((m, v), a, b, c, d, strict=True))
    return m, v


def sde(kind: type) -> tuple:
    """(drift, g^2) of SDE eq. 32 (VP), eq. 28 (sub-VP), eq. 30 (VE)."""

    def beta(t):
        return 0.1 + t * 19.9

    if kind is VPSDE:
        return beta, beta
    if kind is SubVP:
        return beta, lambda t: beta(t) * (1 - np.exp(-2 * (0.1 * t + 19.9 * t**2 / 2)))
    return lambda t: 0.0, lambda t: (0.01 * 5000**t) ** 2 * 2 * np.log(5000)


@pytest.mark.parametrize("t", [0.05, 0.4, 1.0])
@pytest.mark.parametrize("kind", [VPSDE, SubVP, VESDE])
def test_the_sde_itself(kind, t):
    """alpha and sigma^2 are the mean and variance of the SDE, integrated. VE's eq. 31 drops sigma_min^2, the variance at t = 0+."""
    mean, variance = ode(sde(kind), t, steps=2000)
    alpha, sigma = kind()(torch.tensor(t, **F64))
    assert alpha.item() == pytest.approx(mean, rel=1e-7)
    assert sigma.item() ** 2 - (1e-4 if kind is VESDE else 0) == pytest.approx(variance, rel=1e-6)


def test_ddpm_tends_to_the_vp_sde():
    """DDPM's betas are beta(t)/T (SDE app. B): with beta 0.1 .. 20 its log-SNR is the SDE's to order 1/T."""
    t = torch.linspace(0.1, 1, 10, **F64)
    gaps = [(Linear(T).log_snr(t) - VPSDE().log_snr(t)).abs().max().item() for T in (1000, 4000)]
    assert gaps[0] < 0.1 and gaps[1] == pytest.approx(gaps[0] / 4, rel=0.1)


def test_ve_in_continuous_time_is_geometric_from_the_paper_s_least_time():
    t = torch.tensor([1e-5, 1e-3, 0.5, 1.0], **F64)
    np.testing.assert_allclose(VESDE()(t)[1].numpy(), 0.01 * 5000 ** t.numpy(), rtol=1e-12)
    assert VESDE()(torch.tensor(5e-6, **F64))[1].item() == pytest.approx(0.005, rel=1e-3)


def test_edm_s_even_times_are_its_ladder():
    """EDM eq. 5 from t = 1 to t = 0.001; the label is c_noise = log(sigma)/4."""
    ladder = EDMGrid(18)(EDM())
    want = (80 ** (1 / 7) + np.arange(18) / 17 * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    np.testing.assert_allclose(EDM()(ladder)[1].numpy(), [*want, 0], rtol=1e-9)
    np.testing.assert_allclose(ladder[:-1].numpy(), np.linspace(1, 0.001, 18), rtol=1e-9)
    np.testing.assert_allclose(EDM().label(ladder[:-1]).numpy(), np.log(want) / 4, rtol=1e-9)


def test_impossible_ends_are_refused():
    with pytest.raises(ValueError, match="0 < sigma_min < sigma_max"):
        VESDE(sigma_min=2.0, sigma_max=1.0)
    with pytest.raises(ValueError, match=r"sigma_min=0.0 of EDM must be above 0"):
        EDM(sigma_min=0.0)
    for kind in (VPSDE, SubVP):
        with pytest.raises(ValueError, match=f"{kind.__name__} needs 0 < beta_min < beta_max"):
            kind(beta_min=3.0, beta_max=1.0)


@pytest.mark.parametrize("schedule", EVERY, ids=repr)
def test_the_number_of_time_steps_is_the_schedule_s_to_say(schedule):
    """One property for all: T where the class has the setting, None in continuous time."""
    wanted = {f.name: getattr(schedule, f.name) for f in fields(schedule)}.get("num_timesteps")
    assert schedule.num_timesteps == wanted and (wanted is None) == isinstance(schedule, (Flow, VESDE, VPSDE))
    assert wanted is None or replace(schedule, num_timesteps=50).num_timesteps == 50
