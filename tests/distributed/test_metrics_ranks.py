"""Two gloo processes with uneven shares give the number of one process; a cache is filled by both together."""

import pytest
import torch
from processes import two_ranks

from diffusion.metrics import DigitsClassifier, FrechetDistance, Moments

SHARES = {"uneven": [9, 91], "one rank without images": [0, 100]}

# Each rank runs this: rank, rendezvous file, cache, output. The ranks share nothing but the file system.
WORKER = """
import json, sys
import torch, torch.distributed as dist
from diffusion.metrics import DigitsClassifier, FrechetDistance, Moments
from test_metrics_ranks import SHARES, features, generated, reference

rank, rendezvous, cache, output = int(sys.argv[1]), *sys.argv[2:]
metric = FrechetDistance(DigitsClassifier(cache=cache), n=100, cache=cache)       # both at once: one trains, the other waits
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
metric.setup(reference(), "cpu")
result = {"weights": metric.extractor.weights_hash, "statistics": metric.statistics, "n": metric.reference.n}
for name, shares in SHARES.items():
    metric.reset()
    for chunk in generated().split(shares)[rank].split(40):
        metric.update(chunk)
    result[name] = [metric.compute().item(), metric.compute().item()]
    moments = Moments(8)
    moments.update(features().split(shares)[rank])
    whole = moments.all_reduce()
    result[name + " moments"] = [whole.n, whole.mean.tolist(), whole.cov.tolist()]
try:
    metric.reset()
    metric.update(generated()[: 10 + rank])
    metric.compute()
except ValueError as error:
    result["refusal"] = str(error)
metric.setup(reference(), "cpu")
result["second setup"] = metric.statistics
with open(output, "w") as file:
    json.dump(result, file)
dist.destroy_process_group()
"""


class Images:
    """101 made-up images: an odd number, so that the shares of the reference are uneven too."""

    name, split, sha256 = "synthetic", "train", "cd" * 32

    def __init__(self, images):
        self.images = images


def generated():
    return torch.randint(0, 256, (100, 8, 8, 1), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def reference():
    generator = torch.Generator().manual_seed(2)
    return Images(torch.randint(0, 128, (101, 8, 8, 1), generator=generator, dtype=torch.uint8).numpy())


def features():
    return torch.randn(100, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64) * 3 + 50


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    return folder / "cache", two_ranks(WORKER, folder, str(folder / "cache"))


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    metric = FrechetDistance(DigitsClassifier(cache=(single := tmp_path_factory.mktemp("single"))), n=100, cache=single)
    metric.setup(reference(), "cpu")
    metric.update(generated())
    return metric


@pytest.mark.parametrize("shares", SHARES)
def test_two_processes_give_the_number_of_one(results, single, shares):
    for result in results[1]:
        assert result[shares] == [pytest.approx(single.compute().item(), rel=1e-6)] * 2
    assert results[1][0][shares] == results[1][1][shares]


@pytest.mark.parametrize("shares", SHARES)
def test_moments_are_summed_in_float64(results, shares):
    expected = Moments(8)
    expected.update(features())
    for result in results[1]:
        n, mean, cov = result[f"{shares} moments"]
        assert n == 100
        torch.testing.assert_close(torch.tensor(mean, dtype=torch.float64), expected.mean, rtol=1e-14, atol=0)
        torch.testing.assert_close(torch.tensor(cov, dtype=torch.float64), expected.cov, rtol=1e-12, atol=1e-13)


def test_the_classifier_and_the_reference_are_made_once(results, single):
    cache, (a, b) = results
    assert a["weights"] == b["weights"] == single.extractor.weights_hash
    assert a["statistics"] == b["statistics"] == a["second setup"] == b["second setup"]
    assert a["n"] == 101
    names = sorted(path.name for path in cache.rglob("*") if path.is_file() and path.suffix != ".lock")
    assert len(names) == 2
    assert names[1].startswith("synthetic-train-cdcd")


def test_the_images_of_all_ranks_are_counted(results):
    assert all("100 images, and 21 were given" in result["refusal"] for result in results[1])
