"""A device that is not there: tensors that compute on the CPU, say that they are on cuda:0, and refuse what CUDA refuses.

    with Device() as device:
        t = device.put(torch.rand(4))
        schedule(t)          # a RuntimeError where CUDA would raise one
    assert device.waits == 0

What it knows of CUDA: operands on different devices are refused, but for CPU tensors of no dimensions, of which an operation takes one
at most (lerp, addcmul and addcdiv of two are refused; `where` takes any number); what is written in place is on the device; indices may
be on the CPU; `numpy` is refused. To read a value, to ask how many are not zero, or to copy to or from the device unless non_blocking,
is to wait for it. Of memory, kernels and gradients it knows nothing, nor of the copies that an operation makes of a Python number.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

aten = torch.ops.aten
HERE = torch.device("cuda:0")
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal, aten.is_nonzero}
MOVES = {aten._to_copy, aten.copy_}  # from one device to another by intent
SCALARS = {aten.cat: 0, aten.stack: 0, aten.where: 3}  # how many of its operands may be CPU scalars, where that is not one
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}


class Pretended(Tensor):
    """A tensor on the device: `held` is where its values are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        return Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), dtype=held.dtype, device=HERE)

    def __init__(self, held: Tensor) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"pretended {self.held!r}"

    def numpy(self, *_: Any, **__: Any) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    __array__ = numpy

    def tolist(self) -> list:
        return self.cpu().tolist()

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise AssertionError(f"{func} on a pretended tensor outside of `with Device()`")


class Device(TorchDispatchMode):
    """The device, while it is there; `counted` is how often each operation waited for it, `waits` how often any did."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counter()

    def __enter__(self) -> "Device":
        self.driver = ExitStack()
        if not torch.cuda.is_available():  # to name cuda:0 starts the driver, which is not there
            torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as torch's own fake tensors have
            self.driver.enter_context(patch("torch.cuda._lazy_init", lambda: None))
        self.driver.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its tensor on the CPU, and only then moves it
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.driver.close()

    @property
    def waits(self) -> int:
        return self.counted.total()

    def put(self, tensor: Tensor) -> Pretended:
        return Pretended(tensor)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        here = any(isinstance(tensor, Pretended) for tensor in tensors)
        asked = kwargs.get("device")
        if asked is not None:
            here_after = _is_here(asked)
            kwargs["device"] = torch.device("cpu")
        else:
            here_after = isinstance(args[0], Pretended) if packet in MOVES else here
        if here:
            _refuse(func, packet, tensors, args)
        moved = packet in MOVES and {isinstance(tensor, Pretended) for tensor in tensors} | {here_after} == {True, False}
        if (here and (packet in WAITS or _masked(packet, args))) or (moved and not _non_blocking(packet, args, kwargs)):
            self.counted[str(packet)] += 1
        held = lambda value: tree_map_only(Pretended, lambda tensor: tensor.held, value)  # noqa: E731
        result = func(*held(args), **held(kwargs))
        if not here_after:
            return result
        inputs = {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Pretended)}
        return tree_map_only(Tensor, lambda tensor: inputs[id(tensor)] if id(tensor) in inputs else Pretended(tensor), result)


def _is_here(device: object) -> bool:
    return device is not None and torch.device(device).type == HERE.type


def _non_blocking(packet: Callable, args: tuple, kwargs: dict) -> bool:
    return kwargs.get("non_blocking", False) or (packet is aten.copy_ and len(args) > 2 and args[2])


def _masked(packet: Callable, args: tuple) -> bool:
    """Indexing by a mask counts what is not zero."""
    return packet in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])


def _refuse(func: Any, packet: Callable, tensors: list[Tensor], args: tuple) -> None:
    if packet in MOVES:
        return
    if packet in INDEXED:
        tensors = [t for t in tensors if not any(t is i for i in args[1])] if isinstance(args[0], Pretended) else tensors
    abroad = [tensor for tensor in tensors if not isinstance(tensor, Pretended)]
    in_place = func._schema.is_mutable and not isinstance(args[0], Pretended)
    if in_place or any(tensor.ndim for tensor in abroad) or len(abroad) > SCALARS.get(packet, 1):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})")
