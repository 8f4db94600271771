"""What the sampler parity tests share: one smooth denoiser in float64, and a walk of each side with every state kept."""

import torch

from diffusion.oracles import GaussianMixture
from diffusion.schedules import Linear

MEANS = torch.tensor([[-1.0, 0.5], [0.8, 0.3], [0.1, -1.0]], dtype=torch.float64)
STDS = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64)
LINEAR = Linear()


def mixture(schedule=LINEAR):
    """The exact denoiser of a mixture of three Gaussians in two dimensions."""
    return GaussianMixture(MEANS, STDS, schedule=schedule)


def ratios(times, schedule):
    """sigma/alpha at the times: what k-diffusion, EDM and diffusers call sigma."""
    return (-schedule.log_snr(times) / 2).exp()


def at(ratio, schedule):
    """The time of a sigma/alpha."""
    return schedule.time(-2 * torch.as_tensor(ratio, dtype=torch.float64).log())


def noise(n=8, seed=0):
    return torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def begin(times, schedule):
    """x at the first time, pure noise of its level."""
    return schedule(times[0])[1] * noise()


def ours(sampler, denoise, x, times, draw=torch.zeros_like):
    """x after each step, stacked."""
    return torch.stack([state.x for state in sampler(denoise, x, times, draw)])


def close(a, b, tolerance):
    """Relative to the largest entry of each state: a state passes near 0 in some coordinates."""
    scale = b.abs().amax(dim=tuple(range(1, b.ndim)), keepdim=True)
    error = ((a.double() - b.double()).abs() / scale).max().item()
    assert error < tolerance, f"relative difference {error:.2e}"
