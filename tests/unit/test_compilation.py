"""compile=WORD: what is compiled, once, to the same losses, and where it is refused. torch's tracing is real here and its kernels are not
made, but for the slow test: on a CPU they take minutes."""

from types import SimpleNamespace

import pytest
import torch
from composing import TINY, composed
from torch._dynamo.testing import CompileCounter

from diffusion.support.errors import UserError
from diffusion.support.moved import brought_up
from diffusion.training import compilation
from diffusion.training.compilation import chosen, compile_blocks, compile_network
from diffusion.training.run import train

DIT = ["network=dit_digits", "network.width=16", "network.depth=3", "network.heads=2"]
UNET = ["network.channels=8", "network.multipliers=[1,2]", "network.attention=[4]", "network.heads=2", "network.dropout=0.1"]
LONG = ["steps=6", "log_every=1", "eval_every=3", "checkpoint_every=100", "grid.steps=2"]


def run(folder, *words):
    plain = [word for word in TINY if not word.startswith("network")]
    return train(composed(*plain, *LONG, *words, f"paths.cache={folder / 'cache'}"), folder / "run")


@pytest.fixture
def counter(monkeypatch):
    """Counts graphs in the place of kernels."""
    torch.compiler.reset()
    counter = CompileCounter()
    monkeypatch.setattr(compilation, "WAYS", {word: lambda m, way=way: way(m, backend=counter) for word, way in compilation.WAYS.items()})
    yield counter
    torch.compiler.reset()


@pytest.mark.parametrize(("word", "network"), [("blocks", UNET), ("network", DIT), ("step", UNET)], ids=["blocks", "network", "step"])
def test_nothing_is_compiled_anew_while_a_run_trains_and_samples(tmp_path, counter, monkeypatch, word, network):
    """Steps, dropped conditions, dropout, the average's weights and back, two halves of guidance: all graphs are there after the first
    evaluation."""
    seen = []
    from diffusion.training.module import DiffusionModule

    monkeypatch.setattr(DiffusionModule, "on_train_batch_start", lambda self, *_: seen.append(counter.frame_count), raising=False)
    network = [*network, "guidance.cfg.scale=2"]
    found = run(tmp_path, f"compile={word}", *network)
    assert counter.frame_count > 0 and seen[1] > 0 and seen[4] == seen[-1] == counter.frame_count
    torch.compiler.reset()
    plain = run(tmp_path / "plain", "compile=off", *network)
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-5)


def test_blocks_of_one_shape_share_what_is_compiled(counter):
    from diffusion.networks import DiT

    network = DiT(in_channels=1, out_channels=1, image_size=8, patch=2, width=16, depth=6, heads=2)
    holder = torch.nn.Module()
    holder.denoiser = torch.nn.Module()
    holder.denoiser.network = network
    compile_blocks(holder, backend=counter)
    network(torch.randn(2, 1, 8, 8), torch.rand(2), None)
    assert counter.frame_count == 1


@pytest.mark.parametrize(
    ("words", "accelerator", "word"),
    [
        (["steps=5000"], "cuda", "blocks"),
        (["steps=4999"], "cuda", "off"),
        (["steps=5000", "minutes=30"], "cuda", "blocks"),
        (["steps=5000", "minutes=2"], "cuda", "off"),  # of which compiling would take the most
        (["steps=5000"], "cpu", "off"),
        (["steps=5000", "deterministic=true"], "cuda", "off"),
        (["steps=5000", "trainer=fsdp"], "cuda", "off"),
        (["steps=5", "compile=step", "deterministic=true"], "cpu", "step"),
    ],
)
def test_what_auto_stands_for(words, accelerator, word):
    assert chosen(composed(*TINY, *words), module_of(torch.nn.ModuleList([torch.nn.Identity()])), accelerator) == word


def module_of(network):
    return SimpleNamespace(objective=None, denoiser=SimpleNamespace(network=network))


def test_what_would_compile_nothing_is_refused_and_not_chosen():
    """A network without lists of blocks has none to compile, and an autoencoder is not called as one."""
    plain, autoencoder = torch.nn.Linear(2, 2), torch.nn.Linear(2, 2)
    autoencoder.moments = None
    assert chosen(composed(*TINY, "steps=5000"), module_of(plain), "cuda") == "off"
    with pytest.raises(UserError, match=r"^compile=blocks finds no blocks in Linear: say compile=network\.$"):
        compile_blocks(module_of(plain))
    with pytest.raises(UserError, match=r"^compile=network does not go with Linear: say compile=blocks\.$"):
        compile_network(module_of(autoencoder))


def test_where_it_cannot_be_a_word_is_refused_and_auto_is_off(tmp_path):
    class Module:
        class objective:
            derives_twice = True

    assert chosen(composed(*TINY, "steps=9999"), Module(), "cuda") == "off"
    with pytest.raises(UserError, match="compile=step does not go with objective"):
        chosen(composed(*TINY, "compile=step"), Module(), "cuda")
    Module.objective = None
    with pytest.raises(UserError, match="compile=blocks does not go with trainer=fsdp; say compile=off"):
        chosen(composed(*TINY, "compile=blocks", "trainer=fsdp"), Module(), "cuda")
    with pytest.raises(UserError, match="compile=step does not go with AutoencoderModule: say compile=blocks"):
        run(tmp_path, "task=autoencoder", "compile=step")


def test_a_run_from_before_the_words_is_compiled_as_it_was():
    config = composed(*TINY)
    assert [brought_up({**config, "compile": on})["compile"] for on in (True, False)] == ["network", "off"]


@pytest.mark.slow
@pytest.mark.parametrize("word", ["blocks", "network", "step"])
def test_the_losses_are_those_of_the_eager_network(tmp_path, word):
    """In float32, by kernels: to a ten-thousandth after six steps of Adam, whose first divide what is near nothing by its size."""
    words = [*DIT, "network.depth=1"]
    found, plain = (run(tmp_path / of, f"compile={of}", *words) for of in (word, "off"))
    assert found["loss"] == pytest.approx(plain["loss"], rel=1e-4)
