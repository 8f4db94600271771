"""An exponential moving average of a model's weights."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class EMA:
    """shadow <- d shadow + (1 - d) weights after each optimizer step, with d = min(decay, (1 + n) / (10 + n)) after n steps.

    float32 whatever the model's precision (0.9999 in half precision never moves); floating-point parameters only. It is not a module,
    so it is in no one's state_dict but its own."""

    def __init__(self, module: nn.Module, decay: float = 0.9999) -> None:
        if not 0 <= decay < 1:
            raise ValueError(f"ema.decay={decay} is outside [0, 1).")
        self.max_decay, self.steps = decay, 0
        self.shadow = {n: p.detach().float().clone() for n, p in module.named_parameters() if p.is_floating_point()}

    @property
    def decay(self) -> float:
        """The decay of the next update."""
        return min(self.max_decay, (1 + self.steps) / (10 + self.steps))

    def _pairs(self, module: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
        """(shadow tensors, weights) in one order; the shadow follows the weights to their device."""
        weights = {n: p.detach() for n, p in module.named_parameters() if p.is_floating_point()}
        self.shadow = {n: self.shadow[n].to(w.device) for n, w in weights.items()}
        return list(self.shadow.values()), list(weights.values())

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move the shadow one step towards the module's weights; no host synchronisation."""
        shadow, weights = self._pairs(module)
        torch._foreach_lerp_(shadow, [w.float() for w in weights], 1 - self.decay)
        self.steps += 1

    @contextmanager
    def applied(self, module: nn.Module) -> Iterator[None]:
        """Within the context the module has the averaged weights; after it, bit for bit its own again."""
        shadow, weights = self._pairs(module)
        own = [w.clone() for w in weights]
        try:
            with torch.no_grad():
                torch._foreach_copy_(weights, shadow)
            yield
        finally:
            with torch.no_grad():
                torch._foreach_copy_(weights, own)

    def state_dict(self) -> dict:
        """Plain tensors and numbers."""
        return {"steps": self.steps, "shadow": self.shadow}

    def load_state_dict(self, state: dict) -> None:
        """Raises ValueError if the weights' names or shapes are not these."""
        theirs = {n: tuple(v.shape) for n, v in state["shadow"].items()}
        ours = {n: tuple(v.shape) for n, v in self.shadow.items()}
        if theirs != ours:
            raise ValueError("The checkpoint's averaged weights are of another network; its config.yaml says which.")
        self.steps = state["steps"]
        self.shadow = {n: v.clone() for n, v in state["shadow"].items()}
