"""An exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import torch
from torch import Tensor, nn

from diffusion.shards import local
from diffusion.support.devices import laid_out_as
from diffusion.support.ranges import Decay, require


class EMA:
    """shadow <- d shadow + (1 - d) weights after each optimizer step, with d = min(decay, (1 + n) / (10 + n)) after n steps.

    float32 even of a model in half precision, where 0.9999 never moves; floating-point parameters only. decay = 0 is the
    weights themselves. It is not a module, so its tensors are in no module's state_dict."""

    def __init__(self, decay: Decay = 0.9999) -> None:
        require(self, locals())
        self.max_decay, self.steps = decay, 0
        self.shadow: dict[str, Tensor] = {}

    def start(self, module: nn.Module) -> Self:
        """Begin at the module's weights as they are."""
        self.steps = 0
        self.shadow = {name: _wide(weight).clone() for name, weight in _weights(module).items()}
        return self

    @property
    def decay(self) -> float:
        """The decay of the next update."""
        return min(self.max_decay, (1 + self.steps) / (10 + self.steps))

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """(shadow tensors, weights) in one order, of sharded ones this device's rows; the shadow follows the weights to their device."""
        weights = _weights(module)
        self.shadow = {name: self.shadow[name].to(weight.device) for name, weight in weights.items()}
        return [local(w) for w in self.shadow.values()], [local(w) for w in weights.values()]

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the shadow one step towards the module's weights; no host synchronisation."""
        shadow, weights = self._pairs(module)
        torch._foreach_lerp_(shadow, [_wide(weight) for weight in weights], 1 - self.decay)
        self.steps += 1

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the context the module has the averaged weights; afterwards it has its own again, bit for bit."""
        shadow, weights = self._pairs(module)
        own = [weight.clone() for weight in weights]
        torch._foreach_copy_(weights, shadow)
        try:
            yield
        finally:
            torch._foreach_copy_(weights, own)

    def describe(self) -> dict[str, Any]:
        """The passport's description of the average."""
        return {"decay": self.max_decay}

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        return {"steps": self.steps, "shadow": self.shadow, "average": self.describe()}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the weights' names or shapes are not these."""
        theirs, ours = ({name: tuple(w.shape) for name, w in shadow.items()} for shadow in (state["shadow"], self.shadow))
        if theirs != ours:
            raise ValueError("The checkpoint's averaged weights are of another network; the run's config.yaml says of which.")
        self.steps = state["steps"]
        self.shadow = {name: laid_out_as(self.shadow[name], weight.clone()) for name, weight in state["shadow"].items()}


def _weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in module.named_parameters() if p.is_floating_point()}


def _wide(weight: Tensor) -> Tensor:
    """In float32, or float64 as it is."""
    return weight.to(torch.promote_types(weight.dtype, torch.float32))
