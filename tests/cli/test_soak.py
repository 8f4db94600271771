"""Twenty thousand steps of the smallest network: memory, open files and living objects stay what they were."""

import gc
import os
import time

import pytest
from composing import composed
from pytorch_lightning import Callback

from diffusion.training.run import train

SETTLED, LAST, EVERY = 5_000, 20_000, 1_000


class Watch(Callback):
    """At every so many steps what the process holds: (step, resident MiB, open files, Python's objects). The time of a step is printed."""

    seen: list[tuple[int, float, int, int]] = []  # noqa: RUF012 (made from a configuration, so that the test has no other hold of it)
    began: float = 0.0

    def on_train_batch_end(self, trainer, *given) -> None:
        if trainer.global_step % EVERY == 0:
            gc.collect()
            with open("/proc/self/statm") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            self.seen.append((trainer.global_step, resident, len(os.listdir("/proc/self/fd")), len(gc.get_objects())))
            seconds, self.began = time.process_time() - self.began, time.process_time()
            step, resident, files, objects = self.seen[-1]
            print(f"\nstep {step}: {seconds / EVERY * 1000:.2f} ms, {resident:.1f} MiB, {files} files, {objects} objects", flush=True)


@pytest.mark.slow
@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="reads /proc")
def test_nothing_grows(tmp_path):
    """A list that grows by one number a step would be 15,000 objects more, a batch that is kept some MiB. The times are printed alone."""
    Watch.seen.clear()
    data = ["dataset=two_moons", "dataset.n=64", "network.width=8", "network.depth=1", "batch_size=4", "metric=none", "grid.steps=2"]
    often = [f"steps={LAST}", "log_every=50", "eval_every=1000", "checkpoint_every=1000", "callbacks.samples.points=16"]
    here = ["trainer.accelerator=cpu", f"paths.cache={tmp_path}", f"+callbacks.watch._target_={__name__}.Watch"]
    train(composed(*data, *often, *here), tmp_path / "run")
    first, *_, last = settled = [row for row in Watch.seen if row[0] >= SETTLED]
    assert last[0] == LAST and len({files for _, _, files, _ in settled}) == 1
    assert last[1] - first[1] < 8 and abs(last[3] - first[3]) < 1_000
