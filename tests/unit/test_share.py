"""The random numbers of an optimizer step are those of its places, whoever draws them."""

from types import SimpleNamespace

import pytest
import torch

from diffusion.training.share import Share

TOTAL, STEP = 12, 5


def shares(world: int, accumulate: int) -> list[Share]:
    """All of a step of TOTAL samples, in the order of their places."""
    trainers = [SimpleNamespace(accumulate_grad_batches=accumulate, world_size=world, global_rank=rank) for rank in range(world)]
    count = TOTAL // world // accumulate
    return [Share.of(count, trainer, STEP * accumulate + batch) for batch in range(accumulate) for trainer in trainers]


def drawn(share: Share, like: torch.Tensor) -> list[torch.Tensor]:
    """A step's draws: of one number a sample, and of two tensors in the layout of x."""
    share.begin(0, STEP)
    x = like[:1].expand(share.count, *like.shape[1:]).clone(memory_format=torch.preserve_format)
    return [share.rand(x.device), share.randn_like(x), share.randn_like(x)]


LAYOUTS = {
    "contiguous": torch.zeros(TOTAL, 3, 4, 5),
    "channels last": torch.zeros(TOTAL, 4, 5, 3).permute(0, 3, 1, 2),
    "one channel": torch.zeros(TOTAL, 4, 5, 1).permute(0, 3, 1, 2),
    "vectors": torch.zeros(TOTAL, 2, dtype=torch.float64),
}


@pytest.mark.parametrize("world, accumulate", [(1, 1), (1, 2), (3, 1), (2, 3), (4, 3), (1, 12)])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_sample_s_numbers_are_those_of_its_place(layout, world, accumulate):
    """Those that torch gives for the whole step, which is what one process with one batch to a step draws."""
    like = LAYOUTS[layout]
    Share(TOTAL, 0, TOTAL).begin(0, STEP)
    expected = [torch.rand(TOTAL), torch.randn_like(like), torch.randn_like(like)]
    found = [torch.cat(rows) for rows in zip(*(drawn(share, like) for share in shares(world, accumulate)), strict=True)]
    assert sum(share.count for share in shares(world, accumulate)) == TOTAL
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs)


def test_a_share_keeps_the_layout_and_frees_the_others_rows():
    like = LAYOUTS["channels last"]
    for share in shares(2, 2):
        noise = share.randn_like(like[: share.count])
        assert noise.stride()[1:] == like.stride()[1:] and noise.untyped_storage().nbytes() == 4 * noise.numel()


def test_what_a_network_draws_is_another_in_each_share_and_step():
    """Dropout, of which the first share's goes on from the step's draws."""

    def masks(step):
        for share in shares(2, 2):
            share.begin(0, step)
            share.rand(torch.device("cpu"))
            share.end(0, step)
            yield tuple(torch.rand(3).tolist())

    assert len({*masks(0), *masks(1)}) == 8
    first = next(masks(1))
    Share(TOTAL, 0, TOTAL).begin(0, 1)
    torch.rand(TOTAL)
    assert first == tuple(torch.rand(3).tolist())
