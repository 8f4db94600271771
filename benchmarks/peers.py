"""python benchmarks/peers.py [--rounds N] [--channels C] [--device cuda] — the same work by this project and by a peer, in turn.

Each row times one piece of work for both, alternately, after a warm-up, and prints the median times and the median of the ratios
(peer / ours, above 1 is in our favour) with its range. The networks have the same shape: the DDPM U-Net of google/ddpm-cifar10-32 at
the given width, random weights. Machines drift: only the ratio means something.
"""

import argparse
import statistics
import time

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler, DDPMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel

from diffusion.denoiser import Denoiser
from diffusion.generate import generate
from diffusion.grids import Leading
from diffusion.networks import UNet
from diffusion.objectives import Simple
from diffusion.parameterization import Epsilon
from diffusion.samplers import DDIM, DDPM
from diffusion.schedules import Linear
from diffusion.times import Uniform
from diffusion.training.ema import EMA


def peer_network(channels):
    return UNet2DModel(
        sample_size=32,
        block_out_channels=(channels, 2 * channels, 2 * channels, 2 * channels),
        down_block_types=("DownBlock2D", "AttnDownBlock2D", "DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
        layers_per_block=2,
        attention_head_dim=None,
        downsample_padding=0,
        flip_sin_to_cos=False,
        freq_shift=1,
        norm_eps=1e-6,
    )


def our_denoiser(channels, device):
    net = UNet(channels=channels, multipliers=(1, 2, 2, 2), res_blocks=2, attention=(16,), heads=1, scale_shift=False)
    return Denoiser(net, Linear(), Epsilon()).to(device, memory_format=torch.channels_last)


def training(channels, device, batch=16):
    """One optimizer step with the average of the weights: noise, network, loss, backward, AdamW, EMA."""
    ours, theirs = our_denoiser(channels, device), peer_network(channels).to(device)
    optimizer, their_optimizer = torch.optim.AdamW(ours.parameters(), fused=True), torch.optim.AdamW(theirs.parameters())
    ema, their_ema = EMA().start(ours), EMAModel(theirs.parameters())
    scheduler = DDPMScheduler()
    images = torch.randint(256, (batch, 32, 32, 3), dtype=torch.uint8, device=device)

    def us():
        x0 = images.permute(0, 3, 1, 2).float() / 127.5 - 1
        t, weight = Uniform()(batch, ours.schedule, device)
        loss = (weight * Simple()(ours, x0, t, torch.randn_like(x0))["loss"]).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        ema.update(ours)

    def them():
        x0 = (images.permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
        t = torch.randint(1000, (batch,), device=device)
        eps = torch.randn_like(x0)
        loss = F.mse_loss(theirs(scheduler.add_noise(x0, eps, t), t).sample, eps)
        their_optimizer.zero_grad()
        loss.backward()
        their_optimizer.step()
        their_ema.step(theirs.parameters())

    return us, them


def sampling(channels, device, sampler, scheduler, steps=10, batch=16):
    """A batch of images from noise, the peer's loop as its documentation writes it."""
    ours, theirs = our_denoiser(channels, device).eval(), peer_network(channels).to(device).eval()

    def us():
        generate(ours, sampler, Leading(steps), (3, 32, 32), range(batch), batch_size=batch)

    @torch.no_grad()
    def them():
        scheduler.set_timesteps(steps)
        generators = [torch.Generator(device).manual_seed(i) for i in range(batch)]
        x = torch.stack([torch.randn(3, 32, 32, generator=g, device=device) for g in generators])
        for t in scheduler.timesteps:
            x = scheduler.step(theirs(x, t).sample, t, x).prev_sample
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu()

    return us, them


def sampler_overhead(device, steps=50, batch=64):
    """The samplers' own arithmetic: a network that costs nothing."""

    class Nothing(torch.nn.Module):
        def forward(self, x, label, cond=None):
            return x

    ours, scheduler = Denoiser(Nothing(), Linear(), Epsilon()), DDIMScheduler(clip_sample=False)

    def us():
        generate(ours, DDIM(), Leading(steps), (3, 32, 32), range(batch), batch_size=batch)

    @torch.no_grad()
    def them():
        scheduler.set_timesteps(steps)
        generators = [torch.Generator(device).manual_seed(i) for i in range(batch)]
        x = torch.stack([torch.randn(3, 32, 32, generator=g, device=device) for g in generators])
        for t in scheduler.timesteps:
            x = scheduler.step(x, t, x).prev_sample
        return ((x / 2 + 0.5).clamp(0, 1) * 255).round().byte().cpu()

    return us, them


def timed(work, device):
    if device == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--channels", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    channels, device = options.channels, options.device
    rows = {
        "training step, batch 16": training(channels, device),
        "DDIM, 10 steps, 16 images": sampling(channels, device, DDIM(), DDIMScheduler(clip_sample=False)),
        "DDPM, 10 steps, 16 images": sampling(channels, device, DDPM(), DDPMScheduler(clip_sample=False)),
        "DDIM's own arithmetic, 50 steps, 64 images": sampler_overhead(device),
    }
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, width {channels}; peer: diffusers\n")
    print("| work | ours, ms | peer, ms | peer / ours | range |\n|---|---|---|---|---|")
    for name, (us, them) in rows.items():
        us(), them()
        pairs = [(timed(us, device), timed(them, device)) for _ in range(options.rounds)]
        ratios = [b / a for a, b in pairs]
        a, b = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
        print(f"| {name} | {a:.1f} | {b:.1f} | {statistics.median(ratios):.2f} | {min(ratios):.2f}–{max(ratios):.2f} |")


if __name__ == "__main__":
    main()
