"""The stream: which images are in which batch is a function of (seed, position) and of nothing else."""

from itertools import chain, islice

import pytest
import torch
from torch.utils.data import DataLoader

from diffusion.data import Stream, flip
from diffusion.data.stream import permutation
from diffusion.support.errors import UserError
from diffusion.support.seeds import splitmix64

N, BATCH, PER_EPOCH = 53, 12, 4


def stream(n=N, **options):
    """Image i is filled with i and has label i."""
    index = torch.arange(n)
    return Stream(index.to(torch.uint8)[:, None, None, None].expand(n, 2, 3, 1), index, **{"batch_size": BATCH} | options)


def labels(stream, batches):
    return [batch.labels.tolist() for batch in islice(stream, batches)]


def test_splitmix64_against_the_published_generator():
    """The sequential form of Steele et al. 2014, in Python's integers, and its known first output for seed 0."""

    def reference(state, n):
        for _ in range(n):
            state = (state + 0x9E3779B97F4A7C15) % 2**64
            z = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
            yield z ^ (z >> 31)

    assert next(reference(0, 1)) == 0xE220A8397B1DCDAF  # the first output Java's SplittableRandom(0).nextLong() gives
    for seed in (0, 1, 2**63 + 5, -3):
        assert [word % 2**64 for word in splitmix64(seed, 100).tolist()] == list(reference(seed % 2**64, 100))


def test_permutations_are_permutations_that_differ_and_look_uniform():
    orders = torch.stack([permutation(5, seed, epoch) for seed in range(50) for epoch in range(100)])
    assert torch.equal(orders.sort(1).values, torch.arange(5).expand(5000, 5))
    counts = torch.stack([(orders == value).sum(0) for value in range(5)])
    chi2 = ((counts - 1000) ** 2 / 1000).sum().item()  # 16 degrees of freedom: above 39.3 once in 1,000
    assert chi2 < 39.3
    assert len({tuple(order) for order in orders.tolist()}) == 120


def test_images_and_labels_stay_together():
    for images, labels in islice(stream(), 6):
        assert images.shape == (BATCH, 2, 3, 1) and images.dtype == torch.uint8 and labels.dtype == torch.int64
        assert torch.equal(images[:, 0, 0, 0].long(), labels)


def test_each_epoch_sees_each_image_at_most_once_and_epochs_differ():
    batches = labels(stream(), 3 * PER_EPOCH)
    epochs = [list(chain(*batches[i : i + PER_EPOCH])) for i in range(0, 3 * PER_EPOCH, PER_EPOCH)]
    assert all(len(epoch) == len(set(epoch)) == PER_EPOCH * BATCH for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    seen = set(chain(*labels(stream(), 20 * PER_EPOCH)))
    assert seen == set(range(N))  # the dropped remainder is another one each time


def test_seeds_differ_and_repeat():
    assert labels(stream(seed=1), 5) == labels(stream(seed=1), 5) != labels(stream(seed=2), 5)


@pytest.mark.parametrize("world", [1, 2, 3, 4, 12])
def test_ranks_split_the_same_global_batches(world):
    whole = labels(stream(seed=3), 9)
    shares = [labels(stream(seed=3, rank=rank, world=world), 9) for rank in range(world)]
    assert [list(chain(*parts)) for parts in zip(*shares, strict=True)] == whole
    assert {len(share) for rank in shares for share in rank} == {BATCH // world}


@pytest.mark.parametrize("accumulate", [1, 2, 3, 6])
def test_a_step_s_items_do_not_depend_on_its_batches(accumulate):
    """Steps of 24 items, two to an epoch, on two ranks: place a 24/accumulate + 12/accumulate r + i."""
    size = 24 // accumulate
    whole = labels(stream(seed=3, batch_size=24), 5)
    shares = [labels(stream(seed=3, batch_size=size, accumulate=accumulate, rank=r, world=2), 5 * accumulate) for r in range(2)]
    batches = [first + second for first, second in zip(*shares, strict=True)]
    assert [list(chain(*batches[i : i + accumulate])) for i in range(0, len(batches), accumulate)] == whole


@pytest.mark.parametrize("start", [1, 3, 4, 5, 17])
def test_resume_from_any_position(start):
    assert labels(stream(start=start), 10) == labels(stream(), start + 10)[start:]


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_workers_do_not_change_the_order(workers):
    loader = DataLoader(stream(start=2), batch_size=None, num_workers=workers)
    assert labels(loader, 9) == labels(stream(start=2), 9)


def test_unlabelled():
    batch = next(iter(Stream(torch.zeros(9, 2, 2, 3, dtype=torch.uint8), None, 4)))
    assert batch.labels is None and batch.images.shape == (4, 2, 2, 3)
    loader = DataLoader(Stream(torch.zeros(9, 2, 2, 3, dtype=torch.uint8), None, 4), batch_size=None, num_workers=1)
    assert next(iter(loader)).labels is None


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_the_device_form_gives_the_same_batches_without_a_host_sync():
    host, index = stream(n=250, batch_size=40), torch.arange(250)
    device = Stream(host.images.cuda(), index.cuda(), 40)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(islice(device, 20))
        flip(batches[0].images)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(batches, host, strict=False):
        assert torch.equal(ours.images.cpu(), theirs.images) and torch.equal(ours.labels.cpu(), theirs.labels)


@pytest.mark.parametrize(
    "options,words",
    [
        ({"batch_size": N + 1}, "batch_size=54 does not fit a data set of 53 items"),
        ({"batch_size": 0}, "batch_size=0 does not fit"),
        ({"batch_size": 10, "world": 4}, "batch_size=10 is the batch over all devices .* say a multiple of 4"),
    ],
)
def test_a_batch_size_that_does_not_fit_is_refused(options, words):
    with pytest.raises(UserError, match=words):
        stream(**options)


def test_flip_mirrors_whole_images_about_half_of_the_time():
    images = torch.arange(1000 * 2 * 3 * 3).to(torch.uint8).reshape(1000, 2, 3, 3)
    flipped = flip(images, torch.rand(1000, generator=torch.Generator().manual_seed(0)))
    kept = (flipped == images).flatten(1).all(1)
    mirrored = (flipped == images.flip(2)).flatten(1).all(1)
    assert (kept ^ mirrored).all()
    assert abs(mirrored.float().mean() - 0.5) < 4 * 0.5 / 1000**0.5  # four standard deviations
    assert flipped.dtype == torch.uint8


def test_flip_draws_from_the_global_generator_that_the_step_seeds():
    images = torch.rand(64, 2, 3, 1)
    torch.manual_seed(5)
    first = flip(images)
    assert not torch.equal(first, flip(images))
    torch.manual_seed(5)
    assert torch.equal(first, flip(images))
