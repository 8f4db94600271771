"""Hashes of tensors: a recorded number names by one the weights that it was measured with."""

import hashlib
from collections.abc import Mapping

import torch


def tensors_hash(tensors: Mapping[str, torch.Tensor]) -> str:
    """The first 16 hex digits of the sha256 of names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
