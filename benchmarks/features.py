"""python benchmarks/features.py [--n 10000] [--size 32] [--batch 64] [--rounds 3] [--device cuda] [--weights PATH].

The same uint8 images through torch-fidelity's FID Inception network, called batch by batch as torch-fidelity calls it, and through this
project's `FrechetDistance.update`, which also finds the sFID's features, takes float64 moments of as many groups as conf/metric/fid.yaml
asks for, and remembers the batch. Alternately, in each round in the other order, after a warm-up; it prints the median times and the
median ratio (ours / theirs) with its range. Without --weights both have one set of random weights. Machines drift: only the ratio means
something.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch
from torch_fidelity import feature_extractor_inceptionv3 as fidelity

from diffusion.metrics import FrechetDistance, InceptionV3

GROUPS = 10  # as conf/metric/fid.yaml


def random_weights(path):
    """A file of random weights, made without the download that torch-fidelity's constructor insists on."""
    download, load = fidelity.load_state_dict_from_url, fidelity.FeatureExtractorInceptionV3.load_state_dict
    fidelity.load_state_dict_from_url = lambda *args, **kwargs: None
    fidelity.FeatureExtractorInceptionV3.load_state_dict = lambda self, state: None
    network = fidelity.FeatureExtractorInceptionV3("random", ["2048"])
    fidelity.load_state_dict_from_url, fidelity.FeatureExtractorInceptionV3.load_state_dict = download, load
    torch.save(network.state_dict(), path)
    return path


class RealImages:
    """A reference nobody looks at: two images."""

    name, split, sha256 = "benchmark", "train", "0" * 64

    def __init__(self, size):
        self.images = torch.randint(0, 256, (2, size, size, 3), dtype=torch.uint8).numpy()


def timed(work, device):
    started = time.perf_counter()
    work()
    if device.startswith("cuda"):
        torch.cuda.synchronize()
    return time.perf_counter() - started


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=10_000)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--weights")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        weights = args.weights or random_weights(Path(folder) / "random.pth")
        theirs = fidelity.FeatureExtractorInceptionV3("peer", ["2048"], feature_extractor_weights_path=str(weights)).to(args.device)
        metric = FrechetDistance(InceptionV3(weights, cache=folder), n=args.n, cache=folder, groups=GROUPS)
        metric.setup(RealImages(args.size), args.device)
    images = torch.randint(0, 256, (args.n, args.size, args.size, 3), dtype=torch.uint8)

    def peer(count=args.n):
        with torch.no_grad():
            return torch.cat([theirs(b.permute(0, 3, 1, 2).to(args.device))[0].cpu() for b in images[:count].split(args.batch)])

    def ours(count=args.n):
        metric.reset()
        for batch in images[:count].split(args.batch):
            metric.update(batch)

    peer(args.batch), ours(args.batch)
    times = []
    for i in range(args.rounds):
        first, second = (ours, peer) if i % 2 == 0 else (peer, ours)
        pair = timed(first, args.device), timed(second, args.device)
        times.append(pair if first is ours else pair[::-1])
    ratios = sorted(a / b for a, b in times)
    a, b = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{args.n} images of {args.size}x{args.size} on {args.device}, batches of {args.batch}, {torch.get_num_threads()} threads")
    print(f"ours {a:.2f} s   torch-fidelity {b:.2f} s   ratio {statistics.median(ratios):.3f} ({ratios[0]:.3f} to {ratios[-1]:.3f})")


if __name__ == "__main__":
    main()
