"""How large the work is: the same rows, made small for a CPU, smaller for a test."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sizes:
    """channels: width of the network that is trained, whose levels have 1, 2, 2, 2 times as many; width: of the one that is sampled.
    batches: images in a training step, a row each; images: in a data set; warmup and steps: of a round. ranks: width, batch of each
    process, warmup and steps of the two processes. batch, long and drawn: images sampled together, those of DDPM, and the steps of DDIM,
    DDPM and DPM++ 2M. features: images measured."""

    channels: int
    lucidrains: int  # the width whose parameters and FLOPs are nearest
    image_size: int
    batches: tuple[int, ...]
    images: int
    warmup: int
    steps: int
    width: int
    batch: int
    long: int
    drawn: tuple[int, int, int]
    features: int
    feature_batch: int
    ranks: tuple[int, int, int, int]  # the network's width, the batch of each process, warm-up and steps of a round
    matmul: int  # of the square matrices whose product is the machine's rate
    rounds: int
    workers: int  # that load a peer's data


CPU = Sizes(
    channels=128,
    lucidrains=144,
    image_size=32,
    batches=(16,),
    images=2048,
    warmup=2,
    steps=2,
    width=32,
    batch=8,
    long=8,
    drawn=(50, 20, 20),
    features=256,
    feature_batch=64,
    ranks=(64, 8, 2, 6),
    matmul=2048,
    rounds=3,
    workers=0,
)
CUDA = Sizes(
    channels=128,
    lucidrains=144,
    image_size=32,
    batches=(128, 512),
    images=50_000,
    warmup=15,
    steps=40,
    width=128,
    batch=128,
    long=32,
    drawn=(50, 1000, 20),
    features=10_000,
    feature_batch=256,
    ranks=(64, 8, 2, 6),
    matmul=8192,
    rounds=3,
    workers=8,
)
SMOKE = Sizes(
    channels=32,
    lucidrains=32,
    image_size=16,
    batches=(16,),
    images=128,
    warmup=1,
    steps=1,
    width=32,
    batch=2,
    long=2,
    drawn=(3, 3, 3),
    features=20,
    feature_batch=10,
    ranks=(32, 4, 1, 1),
    matmul=64,
    rounds=1,
    workers=0,
)
