"""Two gloo processes see each other's losses: one history, the same on both, as if all draws had been made by one (trap 19)."""

import json
import os
import subprocess
import sys
from pathlib import Path

import torch

from diffusion.times import Importance

ROOT = Path(__file__).parents[2]
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
    path = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    words = [[str(rank), str(tmp_path / "rendezvous"), str(tmp_path / f"{rank}.json")] for rank in (0, 1)]
    ranks = [subprocess.Popen([sys.executable, "-c", WORKER, *w], env=environment) for w in words]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    alone = Importance(3, history=4)
    for number in range(6):
        alone.observe(*batch(number))
    assert first["p"] == second["p"] == alone.probabilities().tolist()
    assert alone.counts.min() >= 4 and max(first["p"]) - min(first["p"]) > 0.01
    assert first["t"] != second["t"]  # each draws its own
