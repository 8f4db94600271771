"""The data module under Lightning: a resumed run sees the batches that the uninterrupted run would have seen."""

from dataclasses import replace
from itertools import chain

import pytest
import pytorch_lightning as pl
import torch

from diffusion.data import CIFAR10, DataModule, Digits, Synthetic
from diffusion.support.errors import UserError


class Recorder(pl.LightningModule):
    """Records the labels of each batch, which name the images; fails, if asked, in the middle of a step."""

    def __init__(self, fail_at=None):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen, self.started, self.fail_at = [], 0, fail_at

    def training_step(self, batch, batch_idx):
        self.started += 1
        if self.started == self.fail_at:
            raise RuntimeError("failed in the middle of a step")
        assert torch.isfinite(batch.images.float()).all()
        self.seen.append(batch.labels.tolist())
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class SaveAfter(pl.Callback):
    """Saves in on_train_batch_end, where ModelCheckpoint does, and on an exception."""

    def __init__(self, batches, path):
        self.batches, self.path = batches, path

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx):
        if len(module.seen) in self.batches:
            trainer.save_checkpoint(self.path / f"{len(module.seen)}.ckpt")

    def on_exception(self, trainer, module, exception):
        trainer.save_checkpoint(self.path / "exception.ckpt")


def data(tmp_path, **options):
    """100 images, each its own class; 7 batches of 14 in an epoch."""
    dataset = Synthetic(cache=tmp_path, image_size=100, channels=1, num_classes=100, n=100)
    return DataModule(**{"dataset": dataset, "batch_size": 14, "seed": 3} | options)


def fit(tmp_path, ckpt_path=None, fail_at=None, save=(), options=(), **trainer_options):
    module = Recorder(fail_at)
    trainer = pl.Trainer(
        **{"max_steps": 24, "max_epochs": -1} | trainer_options,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[SaveAfter(save, tmp_path)],
    )
    trainer.fit(module, datamodule=data(tmp_path, **dict(options)), ckpt_path=ckpt_path, weights_only=False)
    return module, trainer


def test_a_run_passes_through_epochs_without_end(tmp_path):
    module, trainer = fit(tmp_path)
    assert len(module.seen) == 24 and trainer.current_epoch <= 1
    first, second = (list(chain(*module.seen[i : i + 7])) for i in (0, 7))
    assert len(set(first)) == len(first) == 98 and len(set(second)) == 98 and first != second


@pytest.mark.parametrize("options", [{}, {"device_resident": True}, {"num_workers": 2}], ids=str)
@pytest.mark.parametrize("accumulate", [1, 3])
def test_a_resumed_run_continues_the_order(tmp_path, accumulate, options):
    """Stops: the first batch, in an epoch, at its end, just after, in the next; within a step, which is begun again, and between steps."""
    stops = (1, 3, 7, 8, 12) if not options else (3, 8)
    steps = {"max_steps": 18 // accumulate, "accumulate_grad_batches": accumulate}
    whole, _ = fit(tmp_path, save=stops, options=options, **steps)
    assert len(whole.seen) == 18
    for stop in stops:
        rest, trainer = fit(tmp_path, ckpt_path=tmp_path / f"{stop}.ckpt", options=options, **steps)
        assert rest.seen == whole.seen[stop - stop % accumulate :]
        assert trainer.global_step == 18 // accumulate


@pytest.mark.parametrize("stop", [2, 3, 6, 7])
@pytest.mark.parametrize("accumulate", [1, 2, 6])
def test_a_run_resumed_with_other_batches_makes_the_same_steps(tmp_path, stop, accumulate):
    """Of 42 items each, in 3 batches at first; Lightning steps when a step's batches are done, and not in the midst of one."""
    whole, _ = fit(tmp_path, save=(stop,), max_steps=4, accumulate_grad_batches=3)
    options = {"batch_size": 42 // accumulate}
    rest, trainer = fit(tmp_path, tmp_path / f"{stop}.ckpt", options=options, max_steps=4, accumulate_grad_batches=accumulate)
    assert list(chain(*rest.seen)) == list(chain(*whole.seen[stop - stop % 3 :])) and trainer.global_step == 4


def test_a_run_is_resumed_on_its_own_data_alone(tmp_path):
    """Other data of the same kind and size are refused; a checkpoint of before the data's hash was kept is taken."""
    fit(tmp_path, save=(5,))
    other = {"dataset": replace(data(tmp_path).dataset, seed=1)}
    with pytest.raises(
        UserError, match=r"^The data are not those of the run: synthetic has the sha256 \w{12}, and the run began with \w{12}; "
    ):
        fit(tmp_path, ckpt_path=tmp_path / "5.ckpt", options=other)
    checkpoint = torch.load(tmp_path / "5.ckpt", weights_only=True)
    assert checkpoint.pop("DataModule") == {"sha256": data(tmp_path).dataset.load().sha256}
    torch.save(checkpoint, tmp_path / "older.ckpt")
    rest, _ = fit(tmp_path, ckpt_path=tmp_path / "older.ckpt", options=other)
    assert len(rest.seen) == 24 - 5


def test_a_resumed_run_can_be_resumed(tmp_path):
    whole, _ = fit(tmp_path, save=(5,))
    fit(tmp_path, ckpt_path=tmp_path / "5.ckpt", save=(6,))  # saved after 11 batches in all
    rest, _ = fit(tmp_path, ckpt_path=tmp_path / "6.ckpt")
    assert rest.seen == whole.seen[11:]


def test_a_batch_whose_step_failed_is_seen_again(tmp_path):
    whole, _ = fit(tmp_path)
    with pytest.raises(RuntimeError, match="middle of a step"):
        fit(tmp_path, fail_at=10)
    rest, _ = fit(tmp_path, ckpt_path=tmp_path / "exception.ckpt")
    assert rest.seen == whole.seen[9:]


def test_a_finished_run_can_be_prolonged(tmp_path):
    whole, _ = fit(tmp_path)
    _, trainer = fit(tmp_path, max_steps=10)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    rest, _ = fit(tmp_path, ckpt_path=tmp_path / "end.ckpt")
    assert rest.seen == whole.seen[10:]


def test_epochs_cut_short_by_the_trainer_do_not_start_over(tmp_path):
    whole, _ = fit(tmp_path)
    cut, _ = fit(tmp_path, max_steps=-1, max_epochs=4, limit_train_batches=5)
    assert cut.seen == whole.seen[:20]


def test_an_unlabelled_set_trains(tmp_path):
    class Unconditional(Recorder):
        def training_step(self, batch, batch_idx):
            assert batch.labels is None
            return self.weight.sum()

    dataset = Synthetic(cache=tmp_path, num_classes=0)
    trainer = pl.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(Unconditional(), datamodule=DataModule(dataset, 8))
    assert trainer.global_step == 2


def test_a_batch_size_above_the_set_is_refused(tmp_path):
    with pytest.raises(UserError, match="batch_size=101 does not fit a data set of 100 items"):
        fit(tmp_path, options={"batch_size": 101})


def test_a_step_above_the_set_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"batch_size=14 x accumulate=8 = 112 items does not fit a data set of 100"):
        fit(tmp_path, accumulate_grad_batches=8)


def test_flips_are_the_data_sets_wish():
    assert DataModule(CIFAR10(), 8).flip and not DataModule(Digits(), 8).flip
