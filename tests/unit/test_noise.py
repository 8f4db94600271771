"""The noise of seeds: the CPU's as it always was, and that which a device makes for a whole batch at once."""

import math

import pytest
import torch
from pretended import HERE, Device

from diffusion.noise import Between, Counted, SeededNoise, slerp
from diffusion.support.seeds import normals, reseed, splitmix64


def test_on_the_cpu_a_seeds_noise_is_its_generators():
    noise = SeededNoise([3, 8], "cpu")
    own = torch.Generator().manual_seed(8)
    for _ in range(2):
        assert torch.equal(noise(torch.empty(2, 3, 5))[1], torch.randn(3, 5, generator=own))


def test_streams_go_on_where_they_were():
    seeds = torch.tensor([0, 1, 2**62])
    whole = splitmix64(seeds[:, None], 9)
    assert torch.equal(whole, torch.cat([splitmix64(seeds[:, None], 4), splitmix64(seeds[:, None], 5, after=4)], 1))
    assert torch.equal(whole[1], splitmix64(1, 9))


def test_a_batchs_noise_is_standard_normal_within_a_seed_and_over_seeds():
    noise = Counted(range(400), "cpu")
    z = torch.stack([noise(torch.empty(400, 3, 10, 11)) for _ in range(3)]).double().flatten(2)  # draws, seeds, numbers
    n = z.numel()
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96), (6, 15, 10170)):
        assert abs((z**power).mean() - moment) < 4 * math.sqrt(variance / n)
    ordered = z.flatten().sort().values  # Kolmogorov and Smirnov; 1.95 is exceeded once in a thousand
    cdf = (1 + torch.erf(ordered / math.sqrt(2))) / 2
    assert (cdf - torch.arange(n) / n).abs().max() * math.sqrt(n) < 1.95
    rows = z.permute(1, 0, 2).flatten(1)
    of_seeds = torch.corrcoef(rows)[~torch.eye(400, dtype=bool)]
    of_numbers = torch.corrcoef(rows.T)[~torch.eye(990, dtype=bool)]
    assert of_seeds.abs().max() < 5.5 / math.sqrt(990) and of_numbers.abs().max() < 5.5 / math.sqrt(400)


def test_a_row_is_its_seeds_alone_whatever_the_batch_and_other_each_time():
    noise, alone = Counted([3, 8, 4], "cpu"), Counted([8], "cpu")
    first, second = (noise(torch.empty(3, 5, 5)) for _ in range(2))
    assert torch.equal(first[1:2], alone(torch.empty(1, 5, 5))) and torch.equal(second[1:2], alone(torch.empty(1, 5, 5)))
    assert len({row.sum().item() for row in (*first, *second)}) == 6


def test_between_two_seeds_lies_the_slerp_of_their_noise():
    noise, ends = Counted([5, Between(3, 8, 0.25)], "cpu"), Counted([3, 8], "cpu")
    for _ in range(2):
        z, (first, second) = noise(torch.empty(2, 4, 4)), ends(torch.empty(2, 4, 4))
        torch.testing.assert_close(z[1], slerp(first, second, 0.25))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16])
def test_of_the_type_that_is_asked_for(dtype):
    z = Counted([1, 2], "cpu")(torch.empty(2, 7, dtype=dtype))
    assert z.dtype == dtype and z.isfinite().all()
    torch.testing.assert_close(z, normals_of(2).to(dtype), atol=1e-2, rtol=1e-2)


def normals_of(k):
    return Counted(range(1, k + 1), "cpu")(torch.empty(k, 7))


def test_the_tails_are_finite_at_the_ends_of_the_words(monkeypatch):
    monkeypatch.setattr("diffusion.support.seeds.splitmix64", lambda *_: torch.tensor([[-1, 0, 2**32 - 1, -(2**32)]]))
    z = normals(torch.zeros(1, dtype=torch.int64), 8)
    assert z.isfinite().all() and z.abs().max() == pytest.approx(math.sqrt(64 * math.log(2)))  # of the smallest, 2^-32


def test_on_a_device_it_is_the_hosts_and_draws_do_not_wait():
    with Device() as device:
        seeds = [3, 8, Between(3, 8, 0.25)]
        noise = SeededNoise(seeds, HERE)
        like = device.put(torch.empty(3, 3, 4))
        before = device.waits
        z = noise(like)
        assert device.waits == before
    assert torch.equal(z.held, Counted(seeds, "cpu")(torch.empty(3, 3, 4)))


@pytest.mark.parametrize("seed", [-1, 2**32, Between(0, 2**32, 0.5)])
def test_a_seed_out_of_range_is_refused(seed):
    for device in ("cpu", "cuda:0"):
        with pytest.raises(ValueError, match="outside 0"):
            SeededNoise([seed], device)


def test_seeding_a_step_is_torchs_own():
    torch.manual_seed(2**62 + 5)
    expected = torch.rand(3)
    reseed(2**62 + 5)
    assert torch.equal(torch.rand(3), expected)
