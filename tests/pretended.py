"""A device that is not there: tensors that compute on the CPU, say that they are on cuda:0, and refuse what CUDA refuses.

    with Device() as device:
        network.to(HERE)
        loss(network(device.put(x))).backward()    # a RuntimeError where CUDA would raise one
    assert device.waits == 0

What it knows of CUDA: operands on different devices are refused, but for CPU tensors of no dimensions, of which an operation takes one
at most (lerp, addcmul and addcdiv of two are refused; `where` takes any number); what is written in place is on the device; indices may
be on the CPU; a generator is of the device that it draws on; `numpy` is refused. To read a value, to ask how many are not zero, to copy
to or from the device unless non_blocking, and to draw one number by weights, is to wait for it; an index, or an operand of `where`, that
is on the CPU is copied. Of memory, kernels and autocast it knows nothing.

To torch's own C++ the tensors are of the device "meta", which needs no driver and whose gradients are computed on the CPU's thread.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
HERE = torch.device("cuda:0")
WAITS = {aten._local_scalar_dense, aten.nonzero, aten.masked_select, aten._unique2, aten.equal, aten.is_nonzero, aten.bincount}
WAITS |= {aten.linalg_eigh, aten._linalg_eigh, aten._linalg_svd, aten.linalg_qr, aten.linalg_lstsq, aten.linalg_cholesky_ex}
MOVES = {aten._to_copy, aten.copy_}  # from one device to another by intent
SCALARS = {aten.cat: 0, aten.stack: 0, aten.where: 3}  # how many of its operands may be CPU scalars, where that is not one
INDEXED = {aten.index, aten.index_put, aten.index_put_, aten._unsafe_index}
COPIED = INDEXED | {aten.where}  # what is on the CPU is brought to the device first


class Pretended(Tensor):
    """A tensor on the device: `held` is where its values are."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> "Pretended":
        of = {"dtype": held.dtype, "device": "meta", "requires_grad": held.requires_grad}
        return Tensor._make_wrapper_subclass(cls, held.shape, held.stride(), held.storage_offset(), **of)

    def __init__(self, held: Tensor) -> None:
        self.held = held.detach()

    device = property(lambda self: HERE)
    is_cuda = property(lambda self: True)
    is_meta = property(lambda self: False)

    def __repr__(self) -> str:
        return f"pretended {self.held!r}"

    def numpy(self, *_: Any, **__: Any) -> None:
        raise TypeError("can't convert cuda:0 device type tensor to numpy.")

    __array__ = numpy

    def tolist(self) -> list:
        return self.cpu().tolist()

    def new_tensor(self, data: Any, *, dtype: torch.dtype | None = None, **of: Any) -> Tensor:
        return torch.tensor(data, dtype=dtype or self.dtype, **{"device": HERE} | of)

    def __getitem__(self, index: Any) -> Tensor:
        return super().__getitem__(torch.tensor(index) if isinstance(index, list) else index)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        raise AssertionError(f"{func} on a pretended tensor outside of `with Device()`")


class Device(TorchDispatchMode):
    """The device, while it is there; `counted` is how often each operation waited for it, `waits` how often any did."""

    def __init__(self) -> None:
        super().__init__()
        self.counted = Counter()
        self.generators: dict[int, torch.Generator] = {}  # those of the device, by torch's own address

    def __enter__(self) -> "Device":
        self.driver = ExitStack()
        if not torch.cuda.is_available():  # to name cuda:0 starts the driver, which is not there
            torch._C._ensureCUDADeviceGuardSet()  # a guard that does nothing, as torch's own fake tensors have
            self.driver.enter_context(patch("torch.cuda._lazy_init", lambda: None))
            self.driver.enter_context(patch("torch.Event"))  # of a queue that there is not
        self.driver.enter_context(patch("torch.Generator", self.generator_class()))
        self.driver.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor makes its tensor on the CPU, and only then moves it
        self.driver.callback(torch.__future__.set_swap_module_params_on_conversion, torch.__future__.get_swap_module_params_on_conversion())
        torch.__future__.set_swap_module_params_on_conversion(True)  # module.to: a parameter becomes another tensor, not only other data
        return super().__enter__()

    def __exit__(self, *error: object) -> None:
        super().__exit__(*error)
        self.driver.close()

    @property
    def waits(self) -> int:
        return self.counted.total()

    @contextmanager
    def without_waiting(self) -> Iterator[None]:
        """Within the context nothing waits, or an AssertionError says what did and how often."""
        before = self.counted.copy()
        yield
        assert self.counted == before, f"waits for the device: {dict(self.counted - before)}"

    def put(self, tensor: Tensor) -> Pretended:
        return Pretended(tensor)

    def generator_class(self) -> type:
        """torch.Generator, by which a generator of the device is made; CUDA's numbers for a seed are others."""
        known = self.generators

        class Generator(torch.Generator):
            def __new__(cls, device: torch.device | str = "cpu") -> torch.Generator:  # type: ignore[misc]
                made = torch._C.Generator()
                if _is_here(device):
                    known[made._cdata] = made
                return made

        return Generator

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs, packet = dict(kwargs or {}), func.overloadpacket
        tensors = list(_tensors((args, *kwargs.values())))
        here = any(isinstance(tensor, Pretended) for tensor in tensors)
        asked = kwargs.get("device")
        if asked is not None:
            here_after = _is_here(asked)
            kwargs["device"] = torch.device("cpu")
        else:
            here_after = isinstance(args[0], Pretended) if packet in MOVES else here
        if here:
            _refuse(func, packet, args, kwargs)
        generator = kwargs.get("generator")
        if generator is not None and (generator._cdata in self.generators) != here_after:
            raise RuntimeError(f"Expected a generator of the same device, {'cuda:0' if here_after else 'cpu'}! ({func})")
        moved = packet in MOVES and {isinstance(tensor, Pretended) for tensor in tensors} | {here_after} == {True, False}
        if (here and _waits(packet, args, kwargs)) or (moved and not _non_blocking(packet, args, kwargs)):
            self.counted[str(packet)] += 1
        result = func(*_held(args), **{name: _held(value) for name, value in kwargs.items()})
        return _put(result, {id(tensor.held): tensor for tensor in tensors if isinstance(tensor, Pretended)}) if here_after else result


def _tensors(value: object) -> Iterator[Tensor]:
    """The tensors of an operation's arguments; torch's own pytree takes five times as long."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _held(value: Any) -> Any:
    """The arguments as they are on the CPU."""
    if isinstance(value, Pretended):
        return value.held
    return type(value)(map(_held, value)) if type(value) in (list, tuple) else value


def _put(value: Any, inputs: Mapping[int, Pretended]) -> Any:
    """The results on the device; one that is an operand, as it is in place, is that operand."""
    if isinstance(value, Tensor):
        return inputs[id(value)] if id(value) in inputs else Pretended(value)
    return type(value)(_put(item, inputs) for item in value) if type(value) in (list, tuple) else value


@contextmanager
def a_gpu_without_waiting() -> Iterator[None]:
    """The same of a real GPU: within the context torch raises an error where the host would wait for it."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _is_here(device: object) -> bool:
    return device is not None and torch.device(device).type in (HERE.type, "meta")


def _non_blocking(packet: Callable, args: tuple, kwargs: dict) -> bool:
    return kwargs.get("non_blocking", False) or (packet is aten.copy_ and len(args) > 2 and args[2])


def _waits(packet: Callable, args: tuple, kwargs: dict) -> bool:
    """Whether a device that computes this has to be waited for."""
    if packet is aten.multinomial:
        return args[1] == 1 or not (kwargs.get("replacement") or args[2:])
    if packet in COPIED and _abroad((args, *kwargs.values())):
        return True
    return packet in WAITS or (packet in INDEXED and any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1]))


def _abroad(value: object) -> list[Tensor]:
    return [tensor for tensor in _tensors(value) if not isinstance(tensor, Pretended)]


def _refuse(func: Any, packet: Callable, args: tuple, kwargs: dict) -> None:
    """Raises RuntimeError for operands that are not all on the device, but for those that CUDA takes."""
    if packet in MOVES:
        return
    if packet in INDEXED and isinstance(args[0], Pretended):
        args = (args[0], *args[2:])
    operands = [found for value in (*args, *kwargs.values()) if (found := _abroad(value))]
    if not operands:
        return
    written = [value for value, argument in zip(args, func._schema.arguments, strict=False) if argument.is_write]
    if _abroad(written) or any(tensor.ndim for found in operands for tensor in found) or len(operands) > SCALARS.get(packet, 1):
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least two devices, cuda:0 and cpu! ({func})")
