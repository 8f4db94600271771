"""python -m diffusion.diagnose, as a user types it: a run, what it writes, and what it refuses."""

import json
from types import SimpleNamespace

import pytest
import torch
import yaml
from commands import command, succeeded
from composing import TINY, composed
from inside import trained

from diffusion.diagnose import share_of_first_half
from diffusion.evaluation.diagnosis import diagnosed
from diffusion.support.errors import UserError
from diffusion.training.power_ema import exponent
from diffusion.training.run import train

WORDS = ("--images", "24", "--device", "cpu")
FILES = ("diagnose.md", "diagnose.json", "diagnose.png")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("diagnosed")


@pytest.fixture(scope="module")
def run(place):
    """Six steps of a learned variance on pictures that are mirrored, a tenth of them held out."""
    return trained(place / "run", "dataset.n=120", "dataset.holdout=0.2", "dataset.flip=true", "schedule.num_timesteps=50", "metric=none")


def diagnose(run, *words):
    return command("-m", "diffusion.diagnose", str(run), *WORDS, *map(str, words), timeout=120)


@pytest.mark.xdist_group("diagnose")
def test_a_run_is_diagnosed(run):
    """A table of every column, six answers, and the three files; nothing else of the run is touched, and a second time says the same."""
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    said = succeeded(diagnose(run))
    for column in (
        "model, training",
        "model, held out",
        "exact denoiser, training",
        "exact denoiser, held out",
        "Gaussian",
        "last weights",
    ):
        assert column in said.splitlines()[3]
    assert "and their mirror images. Held out: 24 of the 24 items of dataset.holdout=0.2." in said
    assert said.count("  rule: ") == 6
    assert {path: path.read_bytes() for path in before} == before
    assert {path.name for path in run.iterdir()} - {path.name for path in before if path.parent == run} >= {*FILES}
    found = json.loads((run / FILES[1]).read_text())
    k = len(found["log_snr"])
    assert found["step"] == 12 and all(len(column["mean"]) == k for column in found["errors"].values()) and len(found["errors"]) == 6
    assert len(found["findings"]) == 6 and all(one["rule"] and one["reference"] and one["numbers"] for one in found["findings"])
    text = (run / FILES[0]).read_text()
    assert text.startswith("```\npython -m diffusion.diagnose") and text.count("* rule: ") == 6 and text.count("\n| ") == k + 2
    assert succeeded(diagnose(run)) == said


@pytest.mark.xdist_group("diagnose")
def test_another_split_is_held_out(place):
    """Of a run without holdout; its pictures that are in the training set too are left out, and a run without classes is one too. A cache
    is made only where the command says so."""
    words = ["dataset=digits", "dataset.split=fit", "dataset.num_classes=0", "objective=simple", "ema=none", "metric=none"]
    run = trained(place / "whole", *words, "conditions=none")
    without = diagnose(run, "--cache", place / "other")
    assert "Held out: none" in succeeded(without) and "--cache names that folder" in without.stderr
    said = succeeded(diagnose(run, "--cache", place / "cache"))
    assert "Held out: 24 of 300 items of split test." in said
    assert said.count("  rule: ") == 4 and "last weights" not in said  # no learned variance, no average


def test_points_are_diagnosed(place):
    """Vectors, in continuous time, with a network that predicts the velocity."""
    words = ["dataset=two_moons", "dataset.n=200", "network.width=16", "network.depth=1", "metric=none", "steps=6", "batch_size=8"]
    flow = ["schedule=flow", "parameterization=velocity", "objective=simple", "trainer.accelerator=cpu", f"paths.cache={place / 'cache'}"]
    run = place / "moons"
    train(composed(*words, *flow), run)
    said = succeeded(diagnose(run))
    assert "Gaussian" in said and "Is it below the Gaussian's error?" in said


@pytest.mark.parametrize(
    "words, said",
    [
        (["nowhere"], "There is no checkpoint nowhere"),
        (["."], "There is no checkpoint"),
        (["RUN", "--images", "1"], "too few"),
        (["RUN", "--device", "nonsense"], "device=nonsense cannot be used"),
    ],
)
def test_a_mistake_is_a_sentence(run, words, said):
    result = command("-m", "diffusion.diagnose", *[str(run) if word == "RUN" else word for word in words])
    assert_refused(result, said)


def assert_refused(result, said):
    assert result.returncode == 1 and said in result.stderr and "Traceback" not in result.stderr
    assert [line for line in result.stderr.splitlines() if line.startswith("error: ")]


def copied(run, to, change=None, weights=None):
    """A run's folder with another configuration, or other weights."""
    (to / "checkpoints").mkdir(parents=True)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (to / "config.yaml").write_text(yaml.safe_dump(config | (change or {})))
    content = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    if weights:
        weights(content)
    torch.save(content, to / "checkpoints" / "last.ckpt")
    return to


def test_what_is_no_run_of_a_denoiser_is_refused(run, place):
    """A classifier, a class that is not trusted, damaged weights and weights that diverged: a sentence, and nothing is written."""
    classifier = place / "classifier"
    words = [word for word in TINY if not word.startswith("callbacks.")]
    train(composed(*words, "task=classifier", f"paths.cache={place / 'cache'}"), classifier)
    foreign = copied(run, place / "foreign", {"objective": {"_target_": "os.system"}})
    damaged = copied(run, place / "damaged")
    (damaged / "checkpoints" / "last.ckpt").write_bytes(b"none")

    def diverge(content):
        next(iter(content["state_dict"].values())).fill_(float("nan"))

    diverged = copied(run, place / "diverged", weights=diverge)
    for folder, said in (
        (classifier, "holds a NoisyClassifier where a Denoiser is needed"),
        (foreign, "os.system"),
        (damaged, "last.ckpt is damaged"),
        (diverged, "are not finite"),
    ):
        assert_refused(diagnose(folder), said)
        assert not list(folder.glob("diagnose*"))


@pytest.mark.parametrize("step", [1, 2, 1001, 10**7 + 1, 10**12])
def test_the_share_of_the_first_half_of_any_training(step):
    """A power function's is that of its integral (`diffusion.training.power_ema`), however many steps a checkpoint says it has."""
    want = (step // 2 / step) ** (exponent(0.1) + 1)
    assert share_of_first_half(SimpleNamespace(ema={"std": 0.1}, step=step)) == pytest.approx(want, rel=1e-3)
    assert share_of_first_half(SimpleNamespace(ema={"decay": 0.5}, step=step)) == pytest.approx(0.5 ** (step - step // 2), abs=0.5)
    assert share_of_first_half(SimpleNamespace(ema={"decay": 0.0}, step=step)) is None


@pytest.mark.xdist_group("diagnose")
@pytest.mark.parametrize("times", [None, {"_target_": "torch.nn.Identity"}])
def test_times_that_are_none_are_a_sentence(run, place, times):
    folder = copied(run, place / f"times-{times is None}", {"times": times})
    with pytest.raises(UserError, match="does not say what times is"):
        diagnosed(folder, 4, torch.device("cpu"), lambda model: None)


def test_a_folder_that_cannot_be_written_is_told_first(run, monkeypatch, capsys):
    """Before anything is measured; and a cache is made where training makes it."""
    from diffusion import diagnose as command_of

    def refuse(folder, key):
        raise UserError(f"{key} {folder}")

    monkeypatch.setattr(command_of, "require_writable", refuse)
    monkeypatch.setattr("sys.argv", ["diagnose", str(run)])
    with pytest.raises(SystemExit):
        command_of.main()
    assert capsys.readouterr().err.endswith(f"error: RUN {run}\n")
    monkeypatch.setattr("sys.argv", ["diagnose", "--help"])
    with pytest.raises(SystemExit):
        command_of.main()
    assert "(data/cache)" in capsys.readouterr().out
