"""Networks from elsewhere: a TorchScript file, or a function of one's own."""

import hashlib
import inspect
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import torch
from torch import Tensor, nn

from diffusion.metrics.extractors.base import Extractor
from diffusion.support.errors import UserError
from diffusion.support.hashes import tensors_hash


class Foreign(Extractor):
    """Called as network(images), images uint8 [n, 3, h, w]; returns features [n, ...], which are flattened, or (features, logits).

    Its outputs and the number of features are found by calling it once. Any resize is left to the network."""

    resize = "the network's own"
    layers: tuple[str, ...] = ("features", "logits")

    def __init__(self, name: str, network: Callable, weights_hash: str) -> None:
        super().__init__(Called(network))
        self.name, self.frechet, self.weights_hash = name, f"fd-{name}", weights_hash

    def width(self, layer: str, shape: tuple[int, ...]) -> int:
        found = self.outputs(torch.zeros(1, *shape[-3:], dtype=torch.uint8))
        self.layers, self.dim = tuple(found), found["features"].shape[1]
        return super().width(layer, shape)

    def prepare(self, images: Tensor) -> Tensor:
        return images.contiguous()


class Called(nn.Module):
    """The network, or a function in its place, with its answer as a tuple of float32 rows."""

    def __init__(self, network: Callable) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        out = self.network(x)
        return tuple(rows.flatten(1).float() for rows in ((out,) if torch.is_tensor(out) else out)[:2])


class TorchScript(Foreign):
    """A TorchScript file, metric.weights=PATH; see `Foreign`. Its name is the file's and its hash that of the file.

    Such a file holds a program as well as weights: run only what you trust. Raises UserError for no path, no such file, or another kind of
    file."""

    def __init__(self, weights: str | Path | None = None, cache: str | Path = ".cache") -> None:
        if weights is None:
            raise UserError("The TorchScript extractor reads its network from a file: give its path by metric.weights=PATH.")
        try:
            content = Path(weights).read_bytes()
            network = torch.jit.load(str(weights), map_location="cpu")
        except OSError:
            raise UserError(f"There is no file {weights}: give a TorchScript file by metric.weights=PATH.") from None
        except (RuntimeError, ValueError):
            raise UserError(f"{weights} is not a TorchScript file: give one by metric.weights=PATH.") from None
        super().__init__(Path(weights).stem, network, hashlib.sha256(content).hexdigest()[:16])


class Function(Foreign):
    """`metric.weights=package.module:function`, importable from where the command runs; see `Foreign`.

    It may also be an nn.Module. Its hash is that of its parameters or of its module's source, so that a changed function has another hash.
    Raises UserError for a name that cannot be imported."""

    def __init__(self, weights: str | None = None, cache: str | Path = ".cache") -> None:
        module, _, name = (weights or "").partition(":")
        try:
            function = getattr(import_module(module), name)
        except (ImportError, AttributeError, ValueError) as error:
            raise UserError(f"metric.weights={weights} cannot be imported ({error}): say package.module:function.") from None
        super().__init__(name, function, fingerprint(function))


def fingerprint(function: Callable) -> str:
    """16 hex digits that change with what the function does, as far as that can be told."""
    if isinstance(function, nn.Module):
        return tensors_hash(function.state_dict())
    return hashlib.sha256(inspect.getsource(import_module(function.__module__)).encode()).hexdigest()[:16]
