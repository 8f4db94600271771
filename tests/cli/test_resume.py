"""A run stopped anywhere and resumed is, bit for bit, the run that was never stopped."""

import json
import random

import numpy as np
import pytest
import torch
import yaml
from commands import command, succeeded
from composing import TINY, composed, composition, typed
from PIL import Image
from pytorch_lightning import Callback

import diffusion.config
import diffusion.training.run
from diffusion.config import plain, resolved
from diffusion.support.errors import UserError
from diffusion.training.lr_schedules import Cosine
from diffusion.training.run import train


class Stop(Exception):
    pass


def run(config, folder, monkeypatch, stop_at=None):
    """Train; with `stop_at`, break off in the middle of that step."""

    class StopAt(Callback):
        def on_before_zero_grad(self, trainer, module, optimizer):
            if trainer.global_step == stop_at:
                raise Stop

    real = diffusion.training.run.build_stages

    def with_stop(node, key="", offered=None):
        return real(node, key, offered) | ({"stop": StopAt()} if key == "callbacks" else {})

    monkeypatch.setattr(diffusion.training.run, "build_stages", with_stop)
    folder.mkdir(exist_ok=True)
    try:
        train(config, folder)
    except Stop:
        assert stop_at is not None
    monkeypatch.setattr(diffusion.training.run, "build_stages", real)


def content(folder):
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)


def losses(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: {k: v for k, v in line.items() if k.startswith("loss")} for line in lines if "loss" in line}


def assert_same(a, b, where=""):
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


OPTIONS = [
    [],
    ["accumulate=2", "steps=8", "checkpoint_every=2", "network.dropout=0.3", "dataset.flip=true"],
    ["objective=vlb", "times=importance", "times.history=2", "schedule.num_timesteps=5", "grid.steps=2"],
    ["objective=edm2", "schedule=edm", "parameterization=edm", "times=log_normal", "ema=posthoc"],
    ["task=autoencoder", "objective.adversary.weight=0.5", "objective.adversary.start=3", "objective.adversary.channels=4", "metric=psnr"],
]


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: options[0] if options else "default")
def test_resume_is_bitwise(tiny, tmp_path, monkeypatch, options):
    config = tiny(*options)
    stop_at = random.SystemRandom().randrange(config["checkpoint_every"] + 1, config["steps"])
    run(config, tmp_path / "whole", monkeypatch)
    run(config, tmp_path / "parts", monkeypatch, stop_at)
    assert content(tmp_path / "parts")["global_step"] < config["steps"], f"stopped at {stop_at}"
    run(config | {"resume": str(tmp_path / "parts")}, tmp_path / "parts", monkeypatch)
    whole, parts = content(tmp_path / "whole"), content(tmp_path / "parts")
    assert whole.keys() == parts.keys()
    for part in {"state_dict", "ema", "optimizer_states", "lr_schedulers", "global_step", "adversary", "latents"} & whole.keys():
        assert_same(whole[part], parts[part], f"stopped at {stop_at}: {part}")
    assert losses(tmp_path / "whole") == losses(tmp_path / "parts"), f"stopped at {stop_at}"


def test_evaluation_changes_nothing(tiny, tmp_path, monkeypatch):
    """The loss curve and the weights with mid-training samples and without are bitwise the same."""
    run(tiny("eval_every=2"), tmp_path / "with", monkeypatch)
    run(tiny("eval_every=1000"), tmp_path / "without", monkeypatch)
    assert len(list((tmp_path / "with" / "samples").iterdir())) > len(list((tmp_path / "without" / "samples").iterdir()))
    assert losses(tmp_path / "with") == losses(tmp_path / "without")
    for part in ("state_dict", "ema", "optimizer_states"):
        assert_same(content(tmp_path / "with")[part], content(tmp_path / "without")[part], part)


def test_checkpoint_is_plain_and_raw_weights_are_not_the_average(tiny, tmp_path, monkeypatch):
    """Loadable with weights_only=True (content does); saved weights are the raw ones although callbacks sampled with the average."""
    run(tiny("eval_every=4"), tmp_path / "run", monkeypatch)
    saved = content(tmp_path / "run")
    weights = {k.removeprefix("denoiser."): v for k, v in saved["state_dict"].items()}
    assert weights.keys() == saved["ema"]["shadow"].keys()
    assert any(not torch.equal(weights[k], v) for k, v in saved["ema"]["shadow"].items())


def rates(folder):
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["learning_rate"] for line in lines if "learning_rate" in line}


def test_what_is_changed_on_resume_is_changed(tiny, tmp_path, monkeypatch):
    """The learning rate, its warm-up, and the length of a cosine that had come down to 0: logged and used as they are recorded."""
    config = tiny("lr_schedule=cosine", "warmup=2", "steps=4", "optimizer.lr=0.001", "log_every=1", "metric=none", "eval_every=100")
    run(config, tmp_path / "run", monkeypatch)
    assert rates(tmp_path / "run") == pytest.approx({step: 0.001 * Cosine(total=4, warmup=2)(step - 1) for step in range(1, 5)})
    before = content(tmp_path / "run")["state_dict"]
    longer = tiny("lr_schedule=cosine", "warmup=3", "steps=8", "optimizer.lr=0.01", "log_every=1", "metric=none", "eval_every=100")
    run(longer | {"resume": str(tmp_path / "run")}, tmp_path / "run", monkeypatch)
    schedule = Cosine(total=8, warmup=3)
    found = rates(tmp_path / "run")
    assert [found[step] for step in range(5, 9)] == pytest.approx([0.01 * schedule(step) for step in range(4, 8)])
    after = content(tmp_path / "run")
    assert after["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 0.01
    assert any(not torch.equal(before[key], value) for key, value in after["state_dict"].items())


def test_a_run_of_one_process_goes_on_on_two(tmp_path):
    """In float32, by the command, in other batches: what is trained and recorded is the same; steps of more images are refused."""
    words = (*TINY, f"paths.cache={tmp_path / 'cache'}", "log_every=1", "eval_every=100", "metric=none", "warmup=2", "times=stratified")
    for name, steps in (("whole", "steps=6"), ("parts", "steps=3")):
        source = plain(composition(*words, steps), typed(*words, steps))
        source.pop("trust")
        train(resolved(source), tmp_path / name, {"source.yaml": yaml.safe_dump(source)})
    succeeded(command("train.py", f"resume={tmp_path / 'parts'}", "steps=6", "batch_size=4", "accumulate=2", "trainer.devices=2"))
    weights = [content(tmp_path / name)["state_dict"] for name in ("whole", "parts")]
    torch.testing.assert_close(*weights, rtol=1e-4, atol=1e-4)
    whole, parts = losses(tmp_path / "whole"), losses(tmp_path / "parts")
    assert whole.keys() == parts.keys() == set(range(1, 7))
    for step, numbers in whole.items():
        assert parts[step] == pytest.approx(numbers, rel=1e-4)
    with pytest.raises(UserError, match="is of batch_size=4 x accumulate=2 = 8 items, and batch_size=8 x accumulate=2 is not"):
        train(composed(*words, "accumulate=2", "steps=9") | {"resume": str(tmp_path / "parts")}, tmp_path / "parts")


def test_a_run_that_is_at_its_end_stays_as_it_is(tiny, tmp_path, monkeypatch):
    run(tiny("steps=4"), tmp_path / "run", monkeypatch)
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    run(tiny("steps=3") | {"resume": str(tmp_path / "run")}, tmp_path / "run", monkeypatch)
    assert {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()} == before


@pytest.mark.parametrize(
    "typed",
    [
        "parameterization._target_=diffusion.parameterization.V",
        "codec.low=0",
        "schedule.s=0.5",
        "dataset.split=test",
        "ema_decay=0.5",
        "debug=default",
    ],
)
def test_what_the_weights_mean_stays(typed, tmp_path, monkeypatch):
    """Refused when the command is read, before anything is built or written."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "source.yaml").write_text(yaml.safe_dump(diffusion.config.plain(composition())))
    cfg = composition(typed, f"resume={tmp_path / 'run'}", name="train")
    monkeypatch.setattr(diffusion.config, "words", lambda: dict([typed.split("=", 1)]))
    with pytest.raises(UserError, match="would change what the run"):
        diffusion.config.configuration(cfg, tmp_path / "run")


def test_a_run_goes_on_with_its_own_data_alone(tmp_path):
    """Of 12 pictures one is added and two are removed; the run is refused, and its folder is as it was. With the 12 it goes on."""
    pictures, numbers = tmp_path / "pictures", np.random.default_rng(0)
    pictures.mkdir()
    for i in range(13):
        Image.fromarray(numbers.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(pictures / f"{i}.png")
    (pictures / "12.png").rename(tmp_path / "12.png")
    words = [
        "dataset=image_folder",
        f"dataset.root={pictures}",
        "dataset.image_size=8",
        "dataset.channels=3",
        "network=digits",
        "metric=none",
    ]
    words += [f"paths.cache={tmp_path / 'cache'}", "data.num_workers=0"]
    kept = [word for word in TINY if not word.startswith("dataset")]
    folder = tmp_path / "run"
    train(composed(*kept, *words, "steps=2", "eval_every=2"), folder)
    resumed = composed(*kept, *words, "steps=4", "eval_every=2") | {"resume": str(folder)}
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    moves = [(tmp_path / "12.png", pictures / "12.png"), *((pictures / name, tmp_path / name) for name in ("0.png", "1.png"))]
    for source, target in moves:
        source.rename(target)
    with pytest.raises(UserError, match=r"^The data are not those of the run: image_folder has the sha256 "):
        train(resumed, folder)
    assert {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()} == before
    for source, target in moves:
        target.rename(source)
    train(resumed, folder)
    assert content(folder)["global_step"] == 4
