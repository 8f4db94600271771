"""Hashes of tensors: a recorded number names by one the weights that it was measured with."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch


def tensors_hash(tensors: Mapping[str, torch.Tensor], settings: Mapping[str, Any] | None = None) -> str:
    """The first 16 hex digits of the sha256 of names, types, shapes and bytes, in the order of the names, and of `settings`: plain data,
    what a network has beside its weights."""
    digest = hashlib.sha256() if settings is None else hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        own = tensor.detach().to("cpu", copy=True)  # memory that numpy has looked at cannot be freed, as FSDP does with gathered weights
        digest.update(own.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()[:16]
