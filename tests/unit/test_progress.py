"""What a command says while it works: bars and words that appear when something takes long, and the time to the end."""

import gc
import logging
import time
import weakref
from types import SimpleNamespace

import pytest
import yaml
from omegaconf import OmegaConf

from diffusion import config
from diffusion.support import progress
from diffusion.training.callbacks.progress import Progress, duration, forecast


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """As on a terminal, where a bar is drawn again five times a second and not every ten seconds."""
    monkeypatch.setattr(progress, "PATIENCE", 0.05)
    monkeypatch.setattr(progress, "sys", SimpleNamespace(stderr=SimpleNamespace(isatty=lambda: True)))


class Circle:
    """Garbage that the collector alone can find."""

    def __init__(self):
        self.itself = self


@pytest.fixture
def thawed():
    """No objects that are exempt, before and after."""
    gc.unfreeze()
    yield
    gc.unfreeze()


def test_what_is_loaded_first_is_not_searched_for_garbage_and_what_comes_later_is(thawed):
    with progress.loading("torch"):
        assert not gc.isenabled()
        loaded = weakref.ref(Circle())
    gc.collect()
    assert loaded() and gc.isenabled()
    with progress.loading("more, in a sweep's second cell"):
        assert gc.isenabled()
        later = weakref.ref(Circle())
    gc.collect()
    assert not later() and gc.isenabled()


def test_a_loading_that_fails_leaves_the_collector_on(thawed):
    with pytest.raises(ModuleNotFoundError), progress.loading("what is not there"):
        raise ModuleNotFoundError
    assert gc.isenabled()


def slowly(n):
    for i in range(n):
        time.sleep(0.03)
        yield i


def test_a_bar_appears_when_something_takes_long_and_not_before(capfd):
    assert list(progress.bar(range(1000), "quick", 1000)) == list(range(1000))
    assert "quick" not in capfd.readouterr().err
    assert list(progress.bar(slowly(20), "slow", 20)) == list(range(20))
    assert "slow" in capfd.readouterr().err


def test_only_the_first_process_speaks(capfd, monkeypatch, caplog):
    monkeypatch.setenv("RANK", "1")
    with caplog.at_level(logging.INFO), progress.doing("saving"):
        assert list(progress.bar(slowly(20), "slow", 20)) == list(range(20))
    assert capfd.readouterr().err == "" and caplog.text == ""


def test_words_appear_when_something_takes_long_and_not_before(caplog):
    with caplog.at_level(logging.INFO):
        with progress.doing("quickly done"):
            pass
        with progress.doing("saving"):
            time.sleep(0.3)
    assert [record.message for record in caplog.records] == ["saving ..."]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(40, "about 40 seconds"), (89, "about 89 seconds"), (720, "about 12 minutes"), (19800, "about 5.5 hours"), (1036800, "about 12 days")],
)
def test_a_time_is_said_as_people_say_it(seconds, words):
    assert duration(seconds) == words


def test_the_time_to_the_end_leaves_out_the_first_step_and_evaluations(monkeypatch, caplog):
    """One slow first step, then one step a second with an evaluation of 100 s among them: 996 steps to go are 1,000 s less 4."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("diffusion.training.callbacks.progress.time.perf_counter", lambda: clock.now)
    module = SimpleNamespace(latest={}, evaluation_seconds=0.0)
    trainer = SimpleNamespace(max_steps=1005, global_step=0, is_global_zero=True, lightning_module=module, callbacks=[])
    bar = Progress()
    bar.on_train_start(trainer, module)
    with caplog.at_level(logging.INFO):
        for step, seconds in enumerate([500, 1, 101, 1, 1, 1], 1):
            clock.now += seconds
            module.evaluation_seconds += 100 if seconds == 101 else 0
            trainer.global_step = step
            bar.on_train_batch_end(trainer, module)
    bar.on_train_end(trainer, module)
    assert [record.message for record in caplog.records] == ["1,000 steps to go: about 17 minutes and the evaluations"]


def test_the_time_to_the_end_of_a_training_with_a_limit():
    """100 steps of 3 s are five minutes: said as they are within the limit, else how many of them it allows."""
    assert forecast(100, 3.0, 400.0) == forecast(100, 3.0) == "100 steps to go: about 5 minutes and the evaluations"
    assert forecast(100, 3.0, 120.0) == "100 steps to go: about 2 minutes are left for about 40 of them and the evaluations"
    assert forecast(3, 3.0) is None


@pytest.mark.parametrize(("gpu", "network", "steps"), [(True, 64, 20000), (False, 16, 2500)])
def test_what_a_data_set_brings_fits_the_machine(gpu, network, steps, monkeypatch):
    from composing import composed

    monkeypatch.setattr(config, "has_gpu", lambda: gpu)
    content = composed("dataset=mnist")
    assert (content["network"]["channels"], content["steps"]) == (network, steps)
    typed = composed("dataset=mnist", "network=digits", "steps=7")
    assert (typed["network"]["channels"], typed["steps"]) == (32, 7)


def test_a_run_that_goes_on_on_another_machine_stays_what_it_was(monkeypatch):
    """The source of a run, in which one key still refers to another, says what followed from the machine."""
    config.register()
    monkeypatch.setattr(config, "has_gpu", lambda: False)
    source = yaml.safe_dump(config.settled({"steps": "${gpu_or_cpu:20000,2500}", "trainer": {"max_steps": "${steps}"}}))
    monkeypatch.setattr(config, "has_gpu", lambda: True)
    assert config.resolved(yaml.safe_load(source)) == {"steps": 2500, "trainer": {"max_steps": 2500}}
    assert OmegaConf.create({"steps": "${gpu_or_cpu:20000,2500}"})["steps"] == 20000


@pytest.mark.parametrize("hidden", ["", "-1"])
def test_a_hidden_gpu_is_none(hidden, monkeypatch):
    monkeypatch.setattr("diffusion.config.Path.exists", lambda path: True)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert config.has_gpu()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    assert not config.has_gpu()
