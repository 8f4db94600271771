"""A loss of one of two gloo processes is not finite: both know it after the same step, and the means of the good steps are of both."""

from processes import two_ranks

WORKER = """
import json, sys
import torch, torch.distributed as dist
from diffusion.training.loss_meter import Meter

rank, rendezvous, output = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
meter, known, t = Meter(), [], torch.tensor([0.5])
for step in range(5):
    if step == 2:  # a checkpoint between two logs: the first rank takes the sums of both with it
        state, meter = meter.state_dict(), Meter()
        meter.load_state_dict(state, "cpu")
    loss = float("nan") if (rank, step) == (1, 3) else 1.0 + rank + step
    meter.update({"loss": torch.tensor([loss])}, t)
    meter.end_step(step, torch.tensor(2.0))
    known.append(meter.bad_step())
with open(output, "w") as file:
    json.dump({"known": known, "means": meter.read()}, file)
dist.destroy_process_group()
"""


def test_ranks_agree(tmp_path):
    first, second = two_ranks(WORKER, tmp_path)
    assert first == second == {"known": [None, None, None, 3, 3], "means": {"loss": 2.5, "gradient_norm": 2.0, "loss/t2of4": 2.5}}
