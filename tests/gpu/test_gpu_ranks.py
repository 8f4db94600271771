"""A group of processes that is one: the device's own way to talk, what metrics gather by it, and a training under torchrun."""

import pytest
import torch
import torch.distributed as dist
from commands import command, succeeded
from composing import TINY
from gpu_place import saved
from torch import nn

from diffusion.support import ranks

pytestmark = pytest.mark.cuda
BACKENDS = {"cuda": "nccl", "cpu": "gloo"}


@pytest.fixture
def group(device, tmp_path):
    """The group, for as long as a test takes."""
    more = {"device_id": torch.device("cuda:0")} if device.real else {}
    dist.init_process_group(BACKENDS[device.name], store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1, **more)
    yield dist.group.WORLD
    dist.destroy_process_group()


def test_the_group_sums_and_gathers(device, group):
    assert dist.get_backend() == BACKENDS[device.name]
    rows = torch.arange(12, dtype=torch.float64, device=device.name).reshape(4, 3)
    summed, gathered = rows.clone(), [torch.empty_like(rows)]
    dist.all_reduce(summed)
    dist.all_gather(gathered, rows)
    dist.barrier()
    assert torch.equal(summed, rows) and torch.equal(gathered[0], rows)
    assert torch.equal(ranks.sum_over_ranks(rows.clone()), rows)
    assert torch.equal(ranks.gather_even(rows), rows) and torch.equal(torch.cat(ranks.gather_rows(rows)), rows)
    assert torch.equal(ranks.gather_dealt(rows), rows)


def test_gradients_by_it_are_those_without(device, group):
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.SiLU(), nn.Conv2d(4, 3, 3)).to(device.name)
    x = torch.randn(2, 3, 8, 8, device=device.name)
    expected = torch.autograd.grad(plain(x).pow(2).mean(), list(plain.parameters()))
    nn.parallel.DistributedDataParallel(plain)(x).pow(2).mean().backward()
    for parameter, gradient in zip(plain.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient)


@pytest.mark.slow
def test_one_rank_under_torchrun_trains_what_no_group_trains(device, tmp_path):
    words = [*TINY, "logger=none", f"paths.cache={tmp_path / 'cache'}", f"paths.runs={tmp_path}", "deterministic=true"]
    place = [f"trainer.accelerator={device.name}", "trainer.devices=1"]
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=1")
    succeeded(command("train.py", *words, *place, "name=alone"))
    succeeded(command("train.py", *words, "trainer=ddp", *place, "name=ranked", launcher=torchrun))
    one, other = saved(tmp_path / "alone"), saved(tmp_path / "ranked")
    for name in one:
        torch.testing.assert_close(other[name], one[name], rtol=1e-4, atol=1e-6)
