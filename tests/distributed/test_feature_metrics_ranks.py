"""Every metric of features on two gloo processes, dealt images like cards and updated unequally often, gives the number of one process."""

import json
from pathlib import Path

import pytest
import torch
from processes import two_ranks

from diffusion.codecs import Pixels as PixelCodec
from diffusion.conditions import Classes
from diffusion.metrics import (
    ClassAccuracy,
    DensityCoverage,
    DigitsClassifier,
    FlowBits,
    FrechetDistance,
    FrechetInfinity,
    InceptionScore,
    KernelDistance,
    Memorization,
    PrecisionRecall,
    VariationalBits,
)
from diffusion.oracles import GaussianMixture
from diffusion.schedules import Cosine

N = 101  # uneven shares

WORKER = """
import sys
import torch, torch.distributed as dist
from test_feature_metrics_ranks import numbers

rank, rendezvous, cache, output = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
numbers(cache, output, rank, 2, size=[9, 50][rank])        # rank 0 updates six times, rank 1 once
dist.destroy_process_group()
"""


class Images:
    name, split, sha256, num_classes = "synthetic", "train", "cd" * 32, 10

    def __init__(self):
        self.images = torch.randint(0, 128, (203, 8, 8, 1), generator=torch.Generator().manual_seed(2), dtype=torch.uint8).numpy()
        self.labels = None


def generated():
    return torch.randint(0, 256, (N, 8, 8, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def numbers(cache, output, rank, world, size):
    """Every metric's numbers, written as JSON; this rank has images rank, rank + world, ..."""
    extractor = DigitsClassifier(cache=cache)
    metrics = [
        FrechetDistance(extractor, N, cache, groups=4),
        FrechetInfinity(extractor, N, cache, groups=5),
        KernelDistance(extractor, N, cache, subsets=10, subset_size=40),
        InceptionScore(extractor, N, cache, splits=4),
        PrecisionRecall(extractor, N, cache, groups=4),
        DensityCoverage(extractor, N, cache),
        ClassAccuracy(extractor, N, cache),
        Memorization(extractor, N, cache),
        VariationalBits(images=7, batch_size=2 * size),
        FlowBits(images=7, batch_size=2 * size),
    ]
    oracle = GaussianMixture(torch.zeros(1, 1, 8, 8), torch.tensor([0.5]), schedule=Cosine(20))
    result = {}
    mine = torch.arange(N)[rank::world]
    for metric in metrics:
        metric.setup(Images(), "cpu", Classes(10))
        metric.model(oracle, PixelCodec((8, 8, 1)))
        for indices in mine.split(size):
            metric.update(generated()[indices], indices % 10)
        result |= metric.numbers()
    result["picture"] = metrics[7].picture().long().sum().item()
    Path(output).write_text(json.dumps(result))


def test_two_processes_give_the_numbers_of_one(tmp_path):
    two = two_ranks(WORKER, tmp_path, str(tmp_path / "cache"))
    numbers(tmp_path / "alone", tmp_path / "one.json", 0, 1, size=64)
    one = json.loads((tmp_path / "one.json").read_text())
    assert two[0] == two[1]
    assert two[0].keys() == one.keys() and len(one) == 22
    for key, value in one.items():
        assert two[0][key] == pytest.approx(value, rel=1e-5, abs=1e-7), key
