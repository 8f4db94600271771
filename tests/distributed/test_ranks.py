"""Two gloo processes gather rows: of equal shares, of unequal ones, and of a rank that has none."""

import pytest
import torch
from processes import two_ranks

from diffusion.support.ranks import dealt_numbers, gather_dealt, gather_even, gather_rows, sum_over_ranks

WORKER = """
import json, sys
import torch, torch.distributed as dist
from diffusion.support.ranks import dealt_numbers, gather_dealt, gather_even, gather_rows, sum_over_ranks
from test_ranks import COUNTS, rows

rank, rendezvous, output = int(sys.argv[1]), *sys.argv[2:]
dist.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
result = {}
for n in COUNTS:
    mine = rows(n)[rank::2]
    result[f"dealt {n}"] = gather_dealt(mine).tolist()
    result[f"by rank {n}"] = [part.tolist() for part in gather_rows(mine)]
    result[f"sum {n}"] = sum_over_ranks(mine.long().sum()).item()
even = rows(6).double().transpose(1, 3)[rank * 3 : rank * 3 + 3]                # not contiguous
result["even"] = gather_even(even).tolist()
result["numbers"] = dealt_numbers(3, 2).tolist()
with open(output, "w") as file:
    json.dump(result, file)
dist.destroy_process_group()
"""

COUNTS = [0, 1, 6, 7]  # images: none at all, none on the second rank, as many on each, one more on the first


def rows(n: int) -> torch.Tensor:
    return torch.randint(0, 256, (n, 4, 3, 1), generator=torch.Generator().manual_seed(n), dtype=torch.uint8)


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> list[dict]:
    return two_ranks(WORKER, tmp_path_factory.mktemp("ranks"))


@pytest.mark.parametrize("n", COUNTS)
def test_what_was_dealt_is_gathered_in_its_order(results, n):
    for result in results:
        assert result[f"dealt {n}"] == rows(n).tolist()
        assert result[f"by rank {n}"] == [rows(n)[0::2].tolist(), rows(n)[1::2].tolist()]
        assert result[f"sum {n}"] == rows(n).long().sum().item()


def test_equal_shares_come_one_rank_s_after_another_s(results):
    assert results[0]["even"] == results[1]["even"] == rows(6).double().transpose(1, 3).tolist()


def test_the_numbers_of_a_rank_are_every_second_one(results):
    assert [result["numbers"] for result in results] == [[6, 8], [7, 9]]


def test_one_process_has_all_rows_already():
    mine = rows(7)
    assert torch.equal(gather_dealt(mine), mine) and torch.equal(gather_even(mine), mine) and torch.equal(*gather_rows(mine), mine)
    assert sum_over_ranks(mine).data_ptr() != mine.data_ptr() and dealt_numbers(3, 2).tolist() == [3, 4]
