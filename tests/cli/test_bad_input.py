"""Each mistake exits non-zero with one sentence that says what to do, with no traceback, and leaves nothing behind."""

import subprocess
import sys

import pytest
from commands import ROOT, SMALL, command

CASES = {
    "unknown group": (["schedule=cosin"], ["schedule=cosin", "cosine", "linear", "did you mean schedule=cosine"]),
    "unknown key": (["stepz=3"], ["stepz", "--help"]),
    "unknown key of a group": (["sampler.etta=1"], ["sampler.etta"]),
    "added key that its class lacks": (["+sampler.etta=1"], ["sampler.etta", "variance"]),
    "wrong type": (["steps=many"], ["steps=many", "Integer"]),
    "wrong type in a group": (["sampler=ddim", "sampler.eta=much"], ["sampler.eta=much", "float"]),
    "value out of range": (["sampler=ddim", "sampler.eta=2"], ["sampler.eta=2"]),
    "batch that devices cannot share": (["batch_size=7", "trainer.devices=2"], ["batch_size=7", "multiple of 2"]),
    "batch larger than the set": (["batch_size=100000"], ["batch_size=100000"]),
    "guidance of an unconditional model": (["dataset.num_classes=0", "guidance.scale=2"], ["guidance.scale=2", "guidance.scale=1"]),
    "what the objective says": (["+denoiser.learned_variance=false"], ["denoiser is not a key of this command"]),
    "added key": (["+stepz=3"], ["stepz is not a key of this command", "steps"]),
    "short form of two": (["guidance=[cfg,classifier]", "guidance.scale=2"], ["guidance.cfg.scale", "guidance.classifier.scale"]),
    "class that is not named": (["sampler=custom"], ["add sampler._target_=package.Class"]),
    "epsilon where alpha is 0": (["schedule.zero_terminal_snr=true"], ["Epsilon", "parameterization=v"]),
    "all that does not go with a schedule": (
        ["schedule=flow", "times=importance"],
        ["Flow does not go with", "Epsilon", "parameterization=v", "Hybrid", "objective=simple", "times=uniform"],
    ),
    "a loss without a mean": (["experiment=x0_digits", "schedule=flow"], ["X0", "no finite mean", "parameterization=v"]),
    "beta above 1": (["schedule=linear", "schedule.num_timesteps=20"], ["num_timesteps=20", "cosine"]),
    "grid with too many steps": (["grid.steps=2000"], ["grid.steps=2000", "1000"]),
    "data that are not there": (["dataset=image_folder", "dataset.root=nowhere", "network=digits"], ["nowhere"]),
    "no such run to resume": (["resume=NOWHERE"], ["NOWHERE"]),
    "no such device": (["trainer.accelerator=tpu"], ["xla"]),
    "metric without its weights": (["metric=fd_resnet56"], ["metric.weights"]),
    "weights that are not there": (["metric=fd_resnet56", "metric.weights=nowhere.th"], ["nowhere.th"]),
}


def one_sentence(result, parts):
    assert result.returncode not in (0, None)
    said = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(set(said)) == 1, result.stderr[-3000:]
    assert "Traceback" not in result.stderr, result.stderr[-3000:]
    for part in parts:
        assert part.lower() in said[0].lower()


@pytest.mark.parametrize("case", CASES)
def test_train(case, tmp_path):
    words, parts = CASES[case]
    words = [word.replace("NOWHERE", str(tmp_path / "nowhere")) for word in words]
    kept = [w for w in SMALL if w.split("=")[0] not in {word.split("=")[0] for word in words}]
    if any(w.startswith("dataset=") for w in words):
        kept = [w for w in kept if not w.startswith("dataset.")]
    result = command("train.py", *kept, *words, f"paths.runs={tmp_path / 'runs'}", f"paths.cache={tmp_path / 'cache'}", "logger=none")
    one_sentence(result, parts)
    left = [p for p in (tmp_path / "runs").rglob("*") if p.is_file() and p.suffix != ".yaml"]
    assert left == [] and not (tmp_path / "nowhere").exists()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    result = command("train.py", *SMALL, f"paths.runs={folder}", "name=run", "logger=none")
    assert result.returncode == 0, result.stderr[-3000:]
    return folder / "run"


@pytest.mark.xdist_group("bad_sample")
@pytest.mark.parametrize(
    "words, parts",
    [
        (["ckpt=NOWHERE"], ["nowhere", "runs/NAME"]),
        (["ckpt=RUN", "classes=[9]"], ["classes=[9]", "0 to 3"]),
        (["ckpt=RUN", "n=0"], ["n=0"]),
        (["ckpt=RUN", "sampler=ddim", "grid.steps=0"], ["grid.steps=0"]),
        (["ckpt=DAMAGED"], ["last.ckpt", "damaged"]),
        (["ckpt=OTHER"], ["last.ckpt", "does not match"]),
        ([], ["ckpt"]),
    ],
)
def test_sample(run, tmp_path, words, parts):
    damaged, other = tmp_path / "damaged", tmp_path / "other"
    for folder, config, checkpoint in (
        (damaged, (run / "config.yaml").read_text(), (run / "checkpoints/last.ckpt").read_bytes()[:1000]),
        (other, (run / "config.yaml").read_text().replace("channels: 8", "channels: 16"), (run / "checkpoints/last.ckpt").read_bytes()),
    ):
        (folder / "checkpoints").mkdir(parents=True)
        (folder / "config.yaml").write_text(config)
        (folder / "checkpoints/last.ckpt").write_bytes(checkpoint)
    names = {"RUN": run, "NOWHERE": tmp_path / "nowhere", "DAMAGED": damaged, "OTHER": other}
    words = [w if w.partition("=")[2] not in names else f"ckpt={names[w.partition('=')[2]]}" for w in words]
    one_sentence(command("sample.py", *words), parts)


@pytest.mark.xdist_group("bad_sample")
def test_a_run_is_not_overwritten_and_a_resumed_one_keeps_its_groups(run):
    before = (run / "checkpoints/last.ckpt").read_bytes()
    one_sentence(command("train.py", *SMALL, f"paths.runs={run.parent}", "name=run", "logger=none"), ["holds a run already", "resume="])
    one_sentence(command("train.py", f"resume={run}", "schedule=linear", "steps=9"), ["schedule=linear"])
    assert (run / "checkpoints/last.ckpt").read_bytes() == before


def test_loss_that_is_not_finite(tmp_path):
    """It stops, says at which step, and the last checkpoint is from before."""
    words = [
        "steps=40",
        "checkpoint_every=1",
        "log_every=10",
        "eval_every=1000",
        "lr_schedule=constant",
        "optimizer.lr=1e18",
        "grad_clip=null",
    ]
    kept = [w for w in SMALL if w.split("=")[0] not in {word.split("=")[0] for word in words}]
    result = command("train.py", *kept, *words, f"paths.runs={tmp_path}", "name=run", "logger=none")
    one_sentence(result, ["at step", "last.ckpt", "optimizer.lr"])
    import torch

    last = torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)
    assert 1 <= last["global_step"] < 40
    assert all(torch.isfinite(v).all() for v in last["state_dict"].values())


def test_a_command_that_is_stopped_while_it_loads_leaves_nothing(tmp_path):
    words = ["train.py", *SMALL, "name=run", f"paths.runs={tmp_path}", f"paths.cache={tmp_path / 'cache'}", "logger=none"]
    with subprocess.Popen([sys.executable, *words], cwd=ROOT, stdout=subprocess.PIPE, text=True) as started:
        assert "run folder" in started.stdout.readline()  # and now torch is imported, for seconds
        started.terminate()
        assert started.wait(60) == 143
    assert list(tmp_path.iterdir()) == []
