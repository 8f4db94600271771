"""Costs on paper: what is counted against closed forms written out by hand, and what follows from it for one GPU and for several."""

import json
import math
import subprocess
import sys

import pytest
import torch
from composing import ROOT
from torch import nn

from benchmarks.cost import Run, evaluation, main, quantity
from benchmarks.flops import Arithmetic, Machine, all_reduce, arithmetic, memory, operations, peak
from benchmarks.memory import LiveBytes

CIFAR = ["dataset=cifar10", "metric=none", "conditions=none"]
MACHINE = Machine(rate=1e14, inside=4e11, between=4e10)


def dit_multiply_adds(tokens=256, width=384, depth=12, channels=4, patch=2, out_channels=8):
    """A DiT's, of an image: each token goes through Q, K, V (3 d^2), the projection (d^2), and a perceptron of 4 d (8 d^2), and meets all
    tokens twice (2 n d); the embedding goes through d x 6 d in each block and 2 d at the end, and 256 sines become it by two layers."""
    block = tokens * 12 * width**2 + 2 * tokens**2 * width + 6 * width**2
    ends = tokens * patch**2 * (channels + out_channels) * width + 2 * width**2
    return depth * block + ends + 256 * width + width**2


def unet_multiply_adds(base=128, multipliers=(1, 2, 2, 2), layers=2, looks=(16,), side=32, colours=3):
    """DDPM's U-Net's (app. B), of an image: 3x3 convolutions of c x c' at r x r pixels are 9 r^2 c c', the 1x1 where a width changes
    r^2 c c', the embedding of 4 base goes into each block, attention of c over n = r^2 pixels is 4 n c^2 + 2 n^2 c."""
    widths, embedding = [base * m for m in multipliers], 4 * base

    def convolution(before, after, r, kernel=3):
        return kernel**2 * r**2 * before * after

    def block(before, after, r):
        skip = 0 if before == after else convolution(before, after, r, 1)
        return convolution(before, after, r) + convolution(after, after, r) + embedding * after + skip

    def look(width, r):
        return (4 * r**2 * width**2 + 2 * r**4 * width) * (r in looks)

    total, skips, r = base * embedding + embedding**2 + convolution(colours, base, side), [base], side
    for level, width in enumerate(widths):
        if level:
            r //= 2
            total, skips = total + convolution(skips[-1], skips[-1], r), [*skips, skips[-1]]
        for _ in range(layers):
            total, skips = total + block(skips[-1], width, r) + look(width, r), [*skips, width]
    total += 2 * block(widths[-1], widths[-1], r) + 4 * r**2 * widths[-1] ** 2 + 2 * r**4 * widths[-1]  # the middle looks everywhere
    before = widths[-1]
    for level, width in reversed(list(enumerate(widths))):
        for _ in range(layers + 1):
            total, before = total + block(before + skips.pop(), width, r) + look(width, r), width
        if level:
            r *= 2
            total += convolution(width, width, r)
    return total + convolution(base, colours, r)


def counted(*words):
    run = Run(words)
    return arithmetic(run.make, run.inputs)


def test_dit_s_2_as_by_hand_and_as_published():
    """6.06 "Gflops" of its table 1, which are multiply-adds."""
    by_hand = dit_multiply_adds()
    assert by_hand == pytest.approx(6.06e9, rel=0.01)
    latents = ["dataset=synthetic", "dataset.image_size=32", "dataset.channels=4", "network=dit_s", "conditions=none", "objective=hybrid"]
    assert counted(*latents).forward == pytest.approx(2 * by_hand, rel=0.01)


@pytest.mark.parametrize(
    "words, settings",
    [
        ([], {}),
        (["network.channels=64"], {"base": 64}),
        (
            ["network.res_blocks=3", "network.multipliers=[1,2,3]", "network.attention=[8,16]"],
            {"layers": 3, "multipliers": (1, 2, 3), "looks": (8, 16)},
        ),
    ],
)
def test_the_unet_of_ddpm_as_by_hand(words, settings):
    found = counted(*CIFAR, "objective=simple", "network=ddpm_cifar10", *words)
    assert found.forward == pytest.approx(2 * unet_multiply_adds(**settings), rel=0.01)
    assert found.step == pytest.approx(3 * found.forward, rel=0.01)  # gradients of weights and of inputs are each a forward pass


def test_what_is_computed_again_is_counted_again():
    found = counted(*CIFAR, "network=dit_s", "network.checkpointing=true")
    assert found.step == pytest.approx(4 * found.forward, rel=0.02)


def test_the_networks_of_metrics():
    """0.125 G multiply-adds of ResNet-56 (He et al. 2015) and 5.7 G of Inception-v3 (torchvision's table)."""
    resnet, inception = evaluation().values()
    assert resnet == pytest.approx(2 * 0.126e9, rel=0.02) and inception == pytest.approx(2 * 5.71e9, rel=0.01)


@pytest.mark.parametrize(
    "words, calls",
    [
        (["sampler=ddim", "grid.steps=7"], 7),
        (["sampler=ddim", "grid.steps=7", "conditions=classes", "guidance.scale=2"], 14),
        (["sampler=heun", "grid=edm", "grid.steps=18", "schedule=edm", "parameterization=edm", "objective=edm"], 35),  # EDM's table 2
    ],
)
def test_the_calls_of_a_sampler(words, calls):
    assert Run([*CIFAR, "objective=simple", "network.channels=32", *words]).calls() == calls


def test_bytes_of_two_layers():
    """x [b, 8] -> ReLU(8 -> 16 -> 8), of which the largest sum is when the gradient of the hidden units is rectified: these, their gradient
    after and before; or, on the way there, the hidden units before and after, and no more than all of both ways."""
    two = lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 8))  # noqa: E731
    found = memory(two, lambda n: (torch.empty(n, 8),), averages=3, batch=1000)
    parameters = 8 * 16 + 16 + 16 * 8 + 8
    assert (found.weights, found.averages, found.states) == (4 * parameters, 12 * parameters, 28 * parameters)
    assert 4 * 2 * 16 <= found.activations <= 4 * (3 * 16 + 4 * 8)


def test_bytes_without_numbers_are_those_with_them():
    """Of a small U-Net's step on the CPU, by the same count of tensors that are alive; there attention's kernel has a little more."""
    run = Run([*CIFAR, "network=digits", "network.attention=[16]", "network.dropout=0.1", "objective=simple"])
    with torch.device("meta"):
        paper = peak(run.make(), run.inputs(8))
    network, given = run.make(), tuple(torch.zeros_like(each) for each in run.inputs(8))
    with LiveBytes() as live:
        network(*given).square().mean().backward()
    assert paper == pytest.approx(live.peak, rel=0.05)


def test_less_is_kept_where_it_is_computed_again():
    kept = []
    for words in ([], ["network.checkpointing=true"]):
        run = Run([*CIFAR, "network=dit_s", *words])
        kept.append(memory(run.make, run.inputs).activations)
    assert kept[1] < kept[0] / 2


def test_a_ring_of_one_sends_nothing_and_of_many_twice_all():
    assert all_reduce(1e9, 1, 1e10) == 0 and all_reduce(1e9, 2, 1e10) == pytest.approx(0.1)
    assert all_reduce(1e9, 1000, 1e10) == pytest.approx(0.2, rel=0.01)


def test_a_step_of_two_ranks_is_that_of_one_while_its_sums_are_hidden():
    """Of 10 GFLOP forward and 20 backward at 100 TFLOP/s an image takes 0.1 + 0.2 ms; 0.4 GB between two GPUs at 0.4 TB/s take 1 ms, as the
    backward pass of five images does."""
    cost, size = Arithmetic(forward=int(1e10), step=int(3e10)), 4e8
    assert MACHINE.binding_batch(cost, size, 2) == pytest.approx(5)
    assert [MACHINE.step(cost, size, batch, 2) / MACHINE.step(cost, size, batch, 1) for batch in (10, 5)] == pytest.approx([1, 1])
    assert MACHINE.step(cost, size, 2, 2) == pytest.approx(0.2e-3 + 1e-3)
    assert MACHINE.step(cost, size, 10, 2, hidden=False) == pytest.approx(3e-3 + 1e-3)
    assert MACHINE.binding_batch(cost, size, 64) == pytest.approx(5 * 10 * (2 * 63 / 64))  # the slower link, more ranks


@pytest.mark.parametrize("wrong", [{"rate": 0}, {"inside": -1.0}, {"between": math.nan}, {"rate": math.inf}, {"gpus": 0}])
def test_a_machine_that_is_none_is_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Machine(**{"rate": 1e14, "inside": 1e11, "between": 1e10} | wrong)


@pytest.mark.parametrize(
    "words, sentence",
    [
        (["dataset=cifar10", "--batch=0"], "--batch=0"),
        (["dataset=cifar10", "--flops-per-second=0"], "rate=0.0"),
        (["dataset=cifar10", "--bandwidth", "1e11", "-1"], "between=-1.0"),
        (["dataset=two_moons"], "dataset.image_size"),
        (["netwrk=dit_s"], "netwrk is not a key of this command; did you mean network"),
        (["dataset=nope"], "dataset=nope is not one of the choices"),
        (["nonsense"], "missing EQUAL"),
    ],
)
def test_nonsense_is_one_sentence(words, sentence, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cost"])
    with pytest.raises(SystemExit) as end:
        main(words)
    said = capsys.readouterr().err.strip()
    assert end.value.code == 1 and sentence in said and len(said.splitlines()) == 1


def test_the_batch_is_that_of_the_words_unless_it_is_said(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cost"])
    for words, batch in (([], 256), (["batch_size=32"], 32), (["batch_size=32", "--batch=16"], 16)):
        main(["experiment=cifar10_fast", "metric=none", *words])
        assert f"with a batch of {batch} |" in (said := capsys.readouterr().out) and "Inception" not in said


def test_the_command_prints_what_is_counted_and_what_is_assumed(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["cost"])
    main([*CIFAR, "network=ddpm_cifar10", "sampler=ddim", "grid.steps=5", "objective=simple", "--batch=64"])
    said = capsys.readouterr().out
    assert "12.4 GFLOP" in said and "35.7 M" in said and "sampling, 5 calls" in said and "none of them measured" in said
    assert [line.split("|")[2].strip() for line in said.splitlines() if line.startswith(("| 1 |", "| 8 |", "| 64 |"))] == [
        "64",
        "512",
        "4096",
    ]
    assert quantity(0.5) == "0.5" and quantity(1234) == "1.23 k"


@pytest.mark.slow
def test_the_command_measures_this_machine():
    line = [sys.executable, "-m", "benchmarks.cost", *CIFAR, "network.channels=32", "sampler=ddim", "--measure", "--rounds=1"]
    said = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=600, check=True).stdout
    rows = [line for line in said.splitlines() if line.startswith("| network=")]
    assert len(rows) == 4 and all(float(row.split("|")[-2]) > 0 for row in rows), json.dumps(rows)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_attention_is_counted_wherever_it_is_computed(device):
    """Two products of [n, d] by [d, n] and [n, n] by [n, d], of each of b h heads, two operations to a multiply-add."""
    q, k, v = (torch.zeros(2, 3, 16, 8, device=device) for _ in range(3))
    assert operations(lambda: torch.nn.functional.scaled_dot_product_attention(q, k, v)) == 2 * 3 * 2 * (2 * 16 * 16 * 8)
