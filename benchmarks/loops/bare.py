"""The floor: the loop that one would write for this network alone, with no framework around it, its data on the device."""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from diffusion.support.host import keep_freed_memory
from diffusion.training.compilation import allow_variants, blocks

from .. import networks
from . import settings, turns


def main() -> None:
    given = settings(__doc__)
    device = torch.device(given.device)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = True
    if given.device == "cpu":
        keep_freed_memory()  # as train.py does: what is to be seen is the framework
    torch.set_float32_matmul_precision("high")
    layout = torch.channels_last if given.channels_last else torch.contiguous_format
    network = networks.ours(given.channels, given.image_size, dropout=0.1).to(device, memory_format=layout)
    facts = networks.facts(network, given.image_size, given.device)
    if given.compile:
        allow_variants()
        for block in blocks(network):
            block.compile()
    images = torch.from_numpy(np.load(Path(given.images).with_suffix(".npy"))).to(device)
    optimizer = torch.optim.AdamW(network.parameters(), lr=2e-4, weight_decay=0.0, fused=True)
    weights = list(network.parameters())
    average = [weight.detach().clone() for weight in weights]
    alpha = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).neg().add(1).cumprod(0).float().to(device)
    turn, total, done = turns(given, **facts), torch.zeros((), device=device), 0
    while True:
        turn.step()
        x0 = images[torch.randint(len(images), (given.batch,), device=device)].permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1
        x0 = torch.where(torch.rand(given.batch, 1, 1, 1, device=device) < 0.5, x0.flip(-1), x0)
        t, eps = torch.randint(1000, (given.batch,), device=device), torch.randn_like(x0)
        a = alpha[t][:, None, None, None]
        with torch.autocast(device.type, torch.bfloat16, enabled=given.precision == "bf16"):
            loss = F.mse_loss(network(a.sqrt() * x0 + (1 - a).sqrt() * eps, t.float()).float(), eps)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, weights, 1e-4)
        total, done = total + loss.detach(), done + 1
        if done % given.log_every == 0:
            print(done, float(total) / given.log_every, flush=True)
            total.zero_()


if __name__ == "__main__":
    main()
