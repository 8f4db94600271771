"""python -m diffusion.convert, as a user types it, and what is done with what it writes."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time

import pytest
import torch
from commands import ROOT, SMALL, command, succeeded
from composing import TINY, composed
from made_autoencoders import autoencoder
from pixel_folders import pipe_and_run, unet

from diffusion.checkpoint import load
from diffusion.convert import flags_of, write_as, write_run
from diffusion.model import assemble
from diffusion.support.errors import UserError

pytest.importorskip("diffusers")
pytestmark = pytest.mark.xdist_group("convert")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return pipe_and_run(tmp_path_factory.mktemp("convert"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The folder of a run of ours, with a number in its metrics.jsonl."""
    place = tmp_path_factory.mktemp("trained")
    norms = "+network.details={_target_:diffusion.networks.details.Details,groups:4}"
    words = ["metric=sliced_wasserstein", "metric.n=32", f"paths.runs={place}", f"paths.cache={place / 'cache'}", "name=ours"]
    succeeded(command("train.py", *SMALL, norms, "network.heads=1", "steps=2", "eval_every=2", *words))
    return place / "ours"


def test_the_command_says_where_it_is(place, tmp_path):
    assert succeeded(command("-m", "diffusion.convert", place / "pipe", tmp_path / "run")).strip() == str(tmp_path / "run")
    assert load(tmp_path / "run").weights == load(place / "pipe").weights


def test_a_run_of_it_is_sampled_by_any_sampler_grid_and_guidance(place):
    words = ["sampler=heun", "grid=karras", "grid.steps=3", "guidance=[clip,dynamic_threshold]", "n=2", f"out={place / 'pictures'}"]
    succeeded(command("sample.py", f"ckpt={place / 'run'}", *words))
    assert (place / "pictures" / "grid.png").is_file()
    origin = json.loads((place / "run" / "diffusion.json").read_text())["origin"]
    assert origin["layout"] == "diffusers' UNet2DModel" and len(origin["sha256"]) == 64


def measured(place, which):
    """The line that evaluate writes of one of them, in the place that it chooses itself."""
    data = [
        "reference=synthetic",
        "dataset.image_size=16",
        "dataset.n=64",
        f"paths.cache={place / 'cache'}",
        f"paths.runs={place / 'runs'}",
    ]
    words = [*data, "metric=sliced_wasserstein", "metric.n=32", "sampler=ddim", "grid.steps=2"]
    succeeded(command("-m", "diffusion.evaluate", f"ckpt={place / which}", *words))
    folder = place / ("run" if which == "run" else "runs/model-pipe")
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def test_a_folder_is_measured_against_a_reference(place):
    """In a folder of its own, since diffusers' is not ours to write to."""
    found = measured(place, "pipe")
    assert found["passport"]["weights"] == load(place / "pipe").weights
    assert {file.name for file in (place / "pipe").iterdir()} == {"model_index.json", "unet", "scheduler"}


@pytest.mark.slow
def test_a_run_of_it_has_the_same_number(place):
    found, expected = (measured(place, which) for which in ("run", "pipe"))
    assert found["sliced-wasserstein@32"] == expected["sliced-wasserstein@32"]
    assert found["passport"]["id"] == expected["passport"]["id"]


@pytest.mark.slow
def test_it_has_no_data_of_its_own(place):
    result = command("-m", "diffusion.evaluate", f"ckpt={place / 'run'}", "metric=sliced_wasserstein")
    assert result.returncode == 1 and "pipe was trained elsewhere" in result.stderr and "reference=cifar10" in result.stderr


@pytest.mark.slow
def test_a_training_begins_from_a_folder(place):
    """Every weight of it but for those of another shape; and it says that the network computes otherwise where it does."""
    words = [
        "dataset=synthetic",
        "dataset.image_size=16",
        "dataset.channels=3",
        "conditions=none",
        "objective=simple",
        "network.channels=16",
    ]
    words += ["network.heads=4", "network.scale_shift=false", "steps=1", "batch_size=2", "trainer.accelerator=cpu", "metric=none"]
    words += ["network.attention=[8]", f"paths.runs={place / 'runs'}", f"paths.cache={place / 'cache'}", "name=tuned", "eval_every=9"]
    result = command("train.py", *words, f"init.ckpt={place / 'pipe'}")
    succeeded(result)
    said = result.stdout + result.stderr
    assert "(100.0 % of the weights) begin as in" in said
    assert "computes otherwise where weights fit: it has Details(groups=8, eps=1e-05" in said


def test_a_run_of_ours_is_written_for_diffusers(trained, tmp_path):
    """With its card: its numbers, their passports, and which of them are of these weights. Sampling it gives the run's own pictures."""
    import diffusers

    write_as(str(trained), str(tmp_path / "there"))
    pipe = diffusers.DDPMPipeline.from_pretrained(tmp_path / "there", local_files_only=True)
    assert pipe.unet.config.num_class_embeds == 5
    card = (tmp_path / "there" / "README.md").read_text()
    (record,) = [line for line in map(json.loads, (trained / "metrics.jsonl").read_text().splitlines()) if "passport" in line]
    row = f"| sliced-wasserstein@32 | {record['sliced-wasserstein@32']:.5g} | 2 | yes | {record['passport']['id']} |"
    assert row in card and "license: unknown" in card and "Class 4, the last of its 5 rows" in card
    found = load(tmp_path / "there").denoiser.network.state_dict()
    expected = load(trained).denoiser.network.state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    write_as(str(trained), str(tmp_path / "last"), averaged=False)
    last = load(tmp_path / "last").denoiser.network.state_dict()
    own = load(trained, averaged=False).denoiser.network.state_dict()
    assert all(torch.equal(last[name], own[name]) for name in own) and not torch.equal(last["out.weight"], found["out.weight"])


def test_tensors_alone(trained, tmp_path):
    from safetensors import safe_open
    from safetensors.torch import load_file

    write_as(str(trained), str(tmp_path / "weights.safetensors"))
    expected = load(trained).denoiser.network.state_dict()
    found = load_file(tmp_path / "weights.safetensors")
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)
    with safe_open(tmp_path / "weights.safetensors", "pt") as file:
        assert json.loads(file.metadata()["diffusion"])["config"]["network"] == load(trained).config["network"]


class Bad:
    """A pickle that would make a file when it is read."""

    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return (open, (str(self.file), "w"))


def test_a_pickle_is_not_run(tmp_path):
    """Of a folder of diffusers too."""
    proof, folder = tmp_path / "proof", tmp_path / "folder"
    unet().save_config(folder)
    (folder / "diffusion_pytorch_model.bin").write_bytes(pickle.dumps({"conv_in.weight": Bad(proof)}))
    shutil.copy(folder / "diffusion_pytorch_model.bin", tmp_path / "model.pt")
    torch.save({"conv_in.weight": Bad(proof)}, tmp_path / "zip.pt")
    for source in (folder, tmp_path / "model.pt", tmp_path / "zip.pt"):
        with pytest.raises(UserError, match=r"io\.open|damaged"):
            write_as(str(source), str(tmp_path / "run"))
        assert not proof.exists() and not (tmp_path / "run").exists()
    torch.load(tmp_path / "zip.pt", weights_only=False)
    assert proof.exists()  # had it been run


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda p: torch.save({"my.weight": torch.zeros(2), "your.bias": torch.zeros(1)}, p / "model.pt"), "unknown layout"),
        (lambda p: torch.save([1, 2], p / "model.pt"), "holds no tensors by name"),
        (lambda p: (p / "model.pt").write_bytes(b"nothing"), "damaged or of another kind"),
        (lambda p: (p / "model.pt").mkdir(), "is no run, no folder in diffusers' format, and no file of weights"),
        (lambda p: None, "There is no"),
    ],
)
def test_what_is_not_known(tmp_path, make, said):
    make(tmp_path)
    with pytest.raises(UserError, match=said):
        write_as(str(tmp_path / "model.pt"), str(tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_weights_that_are_no_numbers(place, tmp_path):
    """As a user sees it; each kind is in unit/test_foreign_values.py."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(place / "pipe", tmp_path / "pipe")
    file = tmp_path / "pipe" / "unet" / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file) | {"conv_in.bias": torch.full((16,), float("nan"))}, file)
    result = command("-m", "diffusion.convert", tmp_path / "pipe", tmp_path / "new" / "run")
    assert result.returncode == 1 and result.stdout == "" and not (tmp_path / "new").exists()
    assert result.stderr.startswith(f"error: {file} has conv_in.bias with a weight of nan") and result.stderr.count("\n") == 1


def test_what_is_there_stays(place, trained, tmp_path):
    """What is not ours is not replaced, nor a run that has been used since; what the command wrote itself is."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years")
    (tmp_path / "notes.safetensors").write_text("more years")
    for target in (tmp_path / "mine", tmp_path / "notes.safetensors", trained):
        with pytest.raises(UserError, match="is there already"):
            write_as(str(place / "pipe"), str(target))
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years"
    for _ in range(2):
        write_as(str(place / "pipe"), str(tmp_path / "again"))
    (tmp_path / "again" / "samples").mkdir()
    with pytest.raises(UserError, match=r"is there already, and not as this command wrote it \(samples\)"):
        write_as(str(place / "pipe"), str(tmp_path / "again"))


def added(folder):
    (folder / "checkpoints" / "mine.ckpt").write_text("years")


def edited(folder):
    with (folder / "config.yaml").open("a") as file:
        file.write("# years\n")


@pytest.mark.parametrize("change", [added, edited])
def test_what_was_changed_within_stays(place, tmp_path, change):
    write_as(str(place / "pipe"), str(tmp_path / "run"))
    change(tmp_path / "run")
    before = {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}
    with pytest.raises(UserError, match="is there already"):
        write_as(str(place / "pipe"), str(tmp_path / "run"))
    assert before == {file: file.read_bytes() for file in (tmp_path / "run").rglob("*") if file.is_file()}


def test_a_card_that_was_edited_stays(trained, tmp_path):
    write_as(str(trained), str(tmp_path / "there"))
    write_as(str(trained), str(tmp_path / "there"))
    (tmp_path / "there" / "README.md").write_text("The licence is MIT.")
    with pytest.raises(UserError, match="is there already"):
        write_as(str(trained), str(tmp_path / "there"))
    assert (tmp_path / "there" / "README.md").read_text() == "The licence is MIT."


def test_what_is_read_is_not_replaced(place, tmp_path):
    shutil.copytree(place / "run", tmp_path / "run")
    for source in (tmp_path / "run", tmp_path / "run" / "checkpoints" / "last.ckpt"):
        with pytest.raises(UserError, match="is what is read, or holds it"):
            write_as(str(source), str(tmp_path / "run"), "run")
    assert load(tmp_path / "run").weights == load(place / "run").weights


def test_a_run_in_latents_keeps_its_autoencoder(tmp_path):
    """Also when its only copy is that in the run."""
    config = composed(*TINY, "codec=autoencoder", f"codec.ckpt={autoencoder(tmp_path / 'vae')}")
    config["conditions"]["num_classes"] = 4
    model = assemble(config)
    write_run(model, {"name": "first"}, tmp_path / "first")
    shutil.rmtree(tmp_path / "vae")
    write_as(str(tmp_path / "first"), str(tmp_path / "second"), "run")
    shutil.rmtree(tmp_path / "first")
    assert load(tmp_path / "second").codec.weights == model.codec.weights


def test_a_checkpoint_of_a_run_is_the_run(trained, tmp_path):
    """And a file of weights is none because there is some config.yaml above it."""
    write_as(str(trained / "checkpoints" / "last.ckpt"), str(tmp_path / "there"))
    assert (tmp_path / "there" / "model_index.json").is_file() and load(tmp_path / "there").weights == load(trained).weights
    (tmp_path / "weights").mkdir()
    (tmp_path / "config.yaml").write_text("mine: 1")
    torch.save({"my.weight": torch.zeros(2)}, tmp_path / "weights" / "w.pt")
    with pytest.raises(UserError, match="unknown layout"):
        write_as(str(tmp_path / "weights" / "w.pt"), str(tmp_path / "run"))


def test_no_place_of_this_machine_is_given_away(place, trained, tmp_path):
    from safetensors import safe_open

    for source, private in ((place / "pipe", place), (trained, trained.parent)):
        write_as(str(source), str(tmp_path / "run"), "run")
        write_as(str(tmp_path / "run"), str(tmp_path / "there"))
        given = [(tmp_path / "there" / name).read_text() for name in ("diffusion.json", "README.md")]
        write_as(str(source), str(tmp_path / "alone.safetensors"))
        with safe_open(tmp_path / "alone.safetensors", "pt") as file:
            given.append(file.metadata()["diffusion"])
        (tmp_path / "alone.safetensors").unlink()
        assert all(str(private) not in text for text in given)
    assert json.loads(given[-1])["config"].keys() >= {"network", "schedule"}


def test_a_flag_named_as_a_word_of_ours(place, tmp_path):
    result = command("-m", "diffusion.convert", place / "pipe", tmp_path / "run", "--source", "x")
    assert result.returncode == 1 and result.stderr.startswith("error: --source is for a file of weights")


def test_words_that_say_nothing_here(place, tmp_path):
    result = command("-m", "diffusion.convert", place / "pipe", tmp_path / "run", "--image_size", "64")
    assert result.returncode == 1 and result.stderr.startswith("error: --image_size is for a file of weights")
    assert not (tmp_path / "run").exists()
    assert flags_of(["--image_size", "64", "--learn_sigma=True"]) == {"image_size": "64", "learn_sigma": "True"}
    for words in (["64"], ["--image_size"], ["--", "64"]):
        with pytest.raises(UserError, match="is not understood"):
            flags_of(words)


@pytest.mark.slow
def test_killed_at_any_moment_it_leaves_all_or_nothing(place, tmp_path):
    """Of a target there is nothing, or a run that loads."""
    weights = load(place / "pipe").weights
    for i, pause in enumerate((0.5, 2.0, 2.5, 3.0, 3.5, 4.0)):
        target = tmp_path / f"run{i}"
        line = [sys.executable, "-m", "diffusion.convert", str(place / "pipe"), str(target)]
        process = subprocess.Popen(line, cwd=ROOT, env=dict(os.environ), stdout=subprocess.DEVNULL)
        time.sleep(pause)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not target.exists() or load(target).weights == weights
