"""What a metric asks of torch.distributed; with no process group each is the single-process answer."""

import torch
import torch.distributed as dist


def rank_and_world() -> tuple[int, int]:
    """(rank, number of processes): (0, 1) when no process group is initialised."""
    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def on_the_wire(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` where the backend can send it: NCCL sends from the GPU only."""
    return tensor.cuda() if dist.get_backend() == "nccl" else tensor


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """The sum of every rank's `tensor`, on every rank, as a new tensor on the same device. All ranks must call it."""
    if rank_and_world()[1] == 1:
        return tensor.clone()
    wire = on_the_wire(tensor.clone())
    dist.all_reduce(wire)
    return wire.to(tensor.device)


def gather_rows(rows: torch.Tensor) -> list[torch.Tensor]:
    """Every rank's rows [n_r, ...], by rank, on every rank and the device of `rows`; a rank may have none. All ranks must call it.

    Ranks may hold different numbers of rows: each is padded to the longest, so that one gather suffices."""
    world = rank_and_world()[1]
    if world == 1:
        return [rows]
    sizes = [torch.zeros(1, dtype=torch.long, device=on_the_wire(rows).device) for _ in range(world)]
    dist.all_gather(sizes, torch.full_like(sizes[0], len(rows)))
    longest = max(int(size) for size in sizes)
    padded = on_the_wire(rows).new_zeros(longest, *rows.shape[1:])
    padded[: len(rows)] = rows
    parts = [torch.empty_like(padded) for _ in range(world)]
    dist.all_gather(parts, padded)
    return [part[: int(size)].to(rows.device) for part, size in zip(parts, sizes, strict=True)]


def gather_dealt(rows: torch.Tensor) -> torch.Tensor:
    """All ranks' rows in the order they were dealt: row i of rank r was number i world + r. All ranks must call it.

    Images are dealt to ranks like cards, so this is their order, and what depends on the order of images (the subsets of KID, the
    splits of the Inception Score) is the same on any number of processes."""
    parts = gather_rows(rows)
    number = torch.cat([torch.arange(len(part)) * len(parts) + rank for rank, part in enumerate(parts)])
    return torch.cat(parts)[number.argsort().to(rows.device)]
