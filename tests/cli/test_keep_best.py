"""keep_best: the checkpoint at which a number was best, across a resumption."""

import pytest

from diffusion.checkpoint import load, read_checkpoint
from diffusion.metrics import PrecisionRecall, SlicedWasserstein
from diffusion.support.errors import UserError
from diffusion.training.run import train

VALUES = [1.0, 2.0, float("nan"), 1.0, 0.5, 4.0]  # after steps 2, 4, ...


@pytest.fixture
def given(monkeypatch):
    """Metrics whose values are those above, in turn; a resumed run goes on with them."""

    def compute(self):
        return values.pop(0)

    values = VALUES[:]
    monkeypatch.setattr(SlicedWasserstein, "compute", compute)
    return values


def config(tiny, steps, **more):
    return (
        tiny("metric=[sliced_wasserstein]", "metric.n=8", "metric.groups=0", "eval_every=2", f"steps={steps}", "checkpoint_every=3") | more
    )


def with_best(configuration, name):
    configuration["callbacks"]["checkpoints"]["keep_best"] = name
    return configuration


@pytest.mark.parametrize("higher", [False, True])
def test_the_best_is_kept_across_a_resumption(tiny, tmp_path, given, monkeypatch, higher):
    monkeypatch.setattr(SlicedWasserstein, "higher_is_better", higher)
    name = name_of(tiny)
    run, best = tmp_path / "run", []
    train(with_best(config(tiny, 4), name), run)
    best.append(read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"])
    for steps in (8, 12):
        train(with_best(config(tiny, steps, resume=str(run)), name), run)
        best.append(read_checkpoint(run / "checkpoints" / "best.ckpt")["global_step"])
    assert best == ([4, 4, 12] if higher else [2, 2, 10])
    assert load(run / "checkpoints" / "best.ckpt").step == best[-1] and load(run).step == 12


def name_of(tiny):
    from diffusion.support.build import build_stages

    (metric,) = build_stages(config(tiny, 4)["metric"], "metric").values()
    return metric.name


def test_a_number_that_is_not_measured_is_refused(tiny, tmp_path):
    name = name_of(tiny)
    with pytest.raises(UserError, match=rf"keep_best=fid is no number that this run measures; it measures .*{name}"):
        train(with_best(config(tiny, 4), "fid"), tmp_path / "run")
    assert not (tmp_path / "run" / "config.yaml").exists()
    with pytest.raises(UserError, match=r"it measures none: say metric="):
        train(with_best(config(tiny, 4) | {"metric": {}}, "fid"), tmp_path / "run")


def test_which_are_better_when_they_are_higher():
    assert PrecisionRecall.higher_is_better and not SlicedWasserstein.higher_is_better
