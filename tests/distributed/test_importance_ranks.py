"""Two gloo processes see each other's losses: one history, the same on both, as if all draws had been made by one (trap 19)."""

from pathlib import Path

import torch
from processes import two_ranks

from diffusion.times import Importance

WORKER = """
import json, sys
import torch, torch.distributed as dist
from diffusion.schedules import Cosine
from diffusion.times import Importance
from test_importance_ranks import batch

rank, rendezvous, output = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
times = Importance(3, history=4)
for number in range(6):
    times.observe(*(part.chunk(2)[rank] for part in batch(number)))
torch.manual_seed(rank)
with open(output, "w") as file:
    json.dump({"p": times.probabilities().tolist(), "t": times(50, Cosine(3)).t.tolist()}, file)
dist.destroy_process_group()
"""


def batch(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(number)
    return torch.randint(1, 4, (10,), generator=generator).double() / 3, torch.rand(10, generator=generator)


def test_one_history_for_all_ranks(tmp_path: Path):
    first, second = two_ranks(WORKER, tmp_path)
    alone = Importance(3, history=4)
    for number in range(6):
        alone.observe(*batch(number))
    assert first["p"] == second["p"] == alone.probabilities().tolist()
    assert alone.counts.min() >= 4 and max(first["p"]) - min(first["p"]) > 0.01
    assert first["t"] != second["t"]  # each draws its own
