"""train.py's turns (see `turns`): a callback as anyone may add one, so that train.py is run as it is."""

from typing import Any

from pytorch_lightning import Callback

from .turns import Turns


class Turning(Callback):
    """train.py's part: `+callbacks.turns._target_=benchmarks.turning.Turning` and the settings of `Turns`."""

    def __init__(self, folder: str, warmup: int, steps: int) -> None:
        self.given = folder, warmup, steps

    def on_train_start(self, trainer: Any, module: Any) -> None:
        """The device and the rank are known."""
        network = module.denoiser.network
        compiled = any(part._compiled_call_impl is not None for part in network.modules())
        kinds = sorted({str(p.dtype).removeprefix("torch.") for p in network.parameters()})
        facts = {"precision": str(trainer.precision), "weights": "/".join(kinds), "compiled": compiled}
        self.turns = Turns(*self.given, trainer.strategy.root_device.type, trainer.global_rank, **facts)

    def on_train_batch_start(self, *_: Any) -> None:
        """A step is about to be made."""
        self.turns.step()
