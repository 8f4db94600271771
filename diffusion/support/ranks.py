"""Sums and rows of all ranks, by torch.distributed. Without a process group each function gives the answer of a single process."""

import torch
import torch.distributed as dist
from torch import Tensor


def rank_and_world() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) when no process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def on_the_wire(tensor: Tensor) -> Tensor:
    """`tensor` where the backend can send it: NCCL sends from the GPU only."""
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """The sum of every rank's `tensor`, on every rank, as a new tensor on the same device. All ranks must call it."""
    if rank_and_world()[1] == 1:
        return tensor.clone()
    wire = on_the_wire(tensor.clone())
    dist.all_reduce(wire)
    return wire.to(tensor.device)


def gather_even(rows: Tensor) -> Tensor:
    """Every rank's rows [n, ...], one rank's after another's, on every rank and the device of `rows`. All ranks must call it.

    Each rank must have the same number of rows; nothing then waits for an accelerator."""
    return torch.cat(_gather(rows))


def gather_rows(rows: Tensor) -> list[Tensor]:
    """Every rank's rows [n_r, ...], by rank, on every rank and the device of `rows`; a rank may have none. All ranks must call it.

    Ranks may hold different numbers of rows: each is padded to the longest, so that one gather suffices."""
    if rank_and_world()[1] == 1:
        return [rows]
    sizes = gather_even(torch.tensor([len(rows)], device=rows.device)).tolist()
    padded = torch.cat([rows, rows.new_zeros(max(sizes) - len(rows), *rows.shape[1:])])
    return [part[:size] for part, size in zip(_gather(padded), sizes, strict=True)]


def gather_dealt(rows: Tensor) -> Tensor:
    """All ranks' rows [n_r, ...] of any dtype in the order they were dealt: row i of rank r was number i world + r. All ranks must call it;
    a rank that was dealt nothing passes rows [0, ...] of the others' shape.

    Images are dealt to ranks like cards, so this is their order, and what depends on the order of images (the subsets of KID, the
    splits of the Inception Score) is the same on any number of processes."""
    parts = gather_rows(rows)
    number = torch.cat([torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)])
    return torch.cat(parts)[number.argsort().to(rows.device)]


def dealt_numbers(count: int, rows: int) -> Tensor:
    """The numbers, among those of all ranks, of this rank's rows count .. count + rows - 1."""
    rank, world = rank_and_world()
    return (count + torch.arange(rows)) * world + rank


def _gather(rows: Tensor) -> list[Tensor]:
    world = rank_and_world()[1]
    if world == 1:
        return [rows]
    wire = on_the_wire(rows.contiguous())
    parts = [torch.empty_like(wire) for _ in range(world)]
    dist.all_gather(parts, wire)
    return [part.to(rows.device) for part in parts]
