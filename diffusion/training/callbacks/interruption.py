"""Leaving a training when the system or the user asks for it, with nothing lost."""

import logging
import os
import shlex
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from diffusion.support.signals import SIGNALS
from diffusion.training.callbacks.agreement import Agreement
from diffusion.training.callbacks.checkpoints import nothing_lost, save_last
from diffusion.training.callbacks.evaluation import Evaluation
from diffusion.training.launch import end_ranks

log = logging.getLogger(__name__)


class Interrupted(SystemExit):
    """A training was left because of the signal `signum`; the exit code is 128 + signum, as a shell gives it."""

    def __init__(self, signum: int) -> None:
        super().__init__(128 + signum)
        self.signum = signal.Signals(signum)


class Interruption(Callback):
    """Hears SIGTERM, SIGINT, SIGUSR1 and SIGHUP from the first step on, and raises Interrupted where nothing is lost: after an optimizer
    step, once last.ckpt is saved, or between two calls of the denoiser in an evaluation, before which it was saved.

    Several ranks leave after the same step, by an `Agreement` on the largest signal that any has heard. An evaluation each rank leaves by
    itself.

    Signals that the process ignores, as under nohup, stay ignored; a second Ctrl-C ends it at once. Its state is what each evaluation
    among `callbacks` has done, so that a resumed run makes the one that was left. Callbacks act in order: this one is the last."""

    def __init__(self, callbacks: Mapping[str, Callback]) -> None:
        self.evaluations = {name: callback for name, callback in callbacks.items() if isinstance(callback, Evaluation)}
        self.heard, self.before, self.step = 0, {}, -1
        self.agreement = Agreement()

    def setup(self, trainer: Trainer, module: LightningModule, stage: str) -> None:
        """In the place of Lightning's own: its handlers wait for other ranks, and its question in each step for the device. Neither has a
        public switch."""
        trainer._signal_connector.register_signal_handlers = partial(self.begin, trainer, module)
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None
        module.denoiser.register_forward_pre_hook(lambda denoiser, _: None if denoiser.training else self.check())

    def begin(self, trainer: Trainer, module: LightningModule) -> None:
        """Listen, when all is loaded; and do what a run owes that has made all its steps, of which Lightning would do nothing."""
        self.listen()
        if trainer.global_step >= trainer.max_steps:
            for hook in ("on_train_start", "on_train_end"):
                for callback in trainer.callbacks:  # type: ignore[attr-defined]  # Lightning sets it without declaring it
                    getattr(callback, hook)(trainer, module)

    def listen(self) -> None:
        """Note signals from now on. Only a main thread can."""
        if threading.current_thread() is threading.main_thread():
            handlers = {signum: signal.getsignal(signum) for signum in SIGNALS}
            self.before = {signum: handler for signum, handler in handlers.items() if handler is not signal.SIG_IGN}
            for signum in self.before:
                signal.signal(signum, self.note)

    def note(self, signum: int, _: object) -> None:
        """The handler."""
        if self.heard == signum == signal.SIGINT:
            signal.signal(signum, signal.SIG_DFL)
            os.kill(os.getpid(), signum)
        self.heard = signum

    def forget(self) -> None:
        """Handlers as they were."""
        for signum, handler in self.before.items():
            signal.signal(signum, handler)
        self.before = {}

    @contextmanager
    def heeded(self, trainer: Trainer, trust: Sequence[str] = ()) -> Iterator[None]:
        """A training, which says what goes on with it if it is left. Other ranks are ended with this one if it started them.

        One that has heard a signal, and whose step is saved, was left by another rank if a message between them fails."""
        try:
            yield
        except BaseException as error:
            end_ranks(trainer)
            left = self.heard and self.agreement.group and isinstance(error, RuntimeError) and nothing_lost(trainer)
            stop = Interrupted(self.heard) if left else error
            if isinstance(stop, Interrupted) and trainer.is_global_zero:
                say_how_to_go_on(stop, Path(trainer.default_root_dir), trust)
            raise stop from None
        finally:
            self.forget()

    def check(self) -> None:
        """Raises Interrupted if this rank has heard a signal."""
        if self.heard:
            raise Interrupted(self.heard)

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        """From which step on."""
        self.step = trainer.global_step
        self.agreement.begin()

    def on_train_batch_end(self, trainer: Trainer, module: LightningModule, *_: Any) -> None:
        """After an optimizer step, never while gradients are being accumulated."""
        if trainer.global_step != self.step:
            self.step = trainer.global_step
            if signum := self.agreement(self.heard):
                save_last(trainer, module)
                raise Interrupted(signum)

    def state_dict(self) -> dict[str, Any]:
        """The step of each evaluation that was finished last, at least 0."""
        return {"done": {name: max(0, evaluation.done) for name, evaluation in self.evaluations.items() if evaluation.every is not None}}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """See state_dict. What it does not name owes nothing, as in a run of an older version."""
        for name, evaluation in self.evaluations.items():
            evaluation.done = state_dict["done"].get(name, -1)


def timed_out(checkpoint: Mapping[str, Any]) -> bool:
    """Whether the training that saved it ended there because its `minutes` were over."""
    return bool(checkpoint["callbacks"].get("TimeLimit", {}).get("over", False))


def owed(checkpoint: Mapping[str, Any]) -> bool:
    """Whether there is an evaluation that was not finished at the checkpoint's step; of a run that has made all its steps, all are made."""
    done = checkpoint["callbacks"].get("Interruption", {"done": {}})["done"]
    return any(step < checkpoint["global_step"] for step in done.values())


def say_how_to_go_on(stop: Interrupted, folder: Path, trust: Sequence[str]) -> None:
    """The command that goes on, or that there is nothing to go on with."""
    if not (folder / "checkpoints" / "last.ckpt").exists():
        log.info("stopped by %s; no step had been saved: start it again", stop.signum.name)
        return
    words = [f"resume={folder}", *([f"trust=[{','.join(trust)}]"] if trust else [])]
    log.info("stopped by %s; go on with: python train.py %s", stop.signum.name, shlex.join(words))
