"""How a command ends: what a user can mend is one sentence and exit code 1."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from diffusion.config import escaped, typed_in
from diffusion.shell import begin, quoted
from diffusion.support.errors import one_sentence


def too_much_of_numpy():
    np.empty(2**58, np.uint8)


def too_much_of_torch():
    torch.empty(2**58, dtype=torch.uint8)


def too_much_of_a_device():
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")


@pytest.mark.parametrize("take", [too_much_of_numpy, too_much_of_torch, too_much_of_a_device])
def test_too_little_memory_is_a_sentence(take, capsys):
    with pytest.raises(SystemExit) as end, begin():
        take()
    said = capsys.readouterr().err
    assert end.value.code == 1 and said.count("\n") == 1
    assert said.startswith("error: There is not enough memory for this (") and "lower batch_size" in said


def test_a_warning_is_a_line():
    """Of a process of its own, since it is the process that prints them."""
    code = "import warnings; from diffusion.shell import shell; shell(lambda: warnings.warn('too few\\nimages: use more'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "UserWarning: too few images: use more\n"


def test_other_errors_keep_their_traceback():
    with pytest.raises(RuntimeError, match="shapes"), begin():
        raise RuntimeError("shapes differ")


@pytest.mark.parametrize(
    "word, read",
    [
        ("grid=1e11", 'grid="1e11"'),
        ("dataset=[1,2.5,-3]", 'dataset=["1","2.5","-3"]'),
        ("schedule=nan", 'schedule="nan"'),
        ("guidance=[cfg,clip]", "guidance=[cfg,clip]"),
        ("sampler=dpm2,heun", "sampler=dpm2,heun"),
        ("dataset=cifar10", "dataset=cifar10"),
        ("network=null", "network=null"),
        ("grid.steps=5,10", "grid.steps=5,10"),
        ("optimizer.lr=1e-3", "optimizer.lr=1e-3"),
        ("ckpt=runs/lr=1e-3", 'ckpt="runs/lr=1e-3"'),
    ],
)
def test_a_group_s_choice_is_a_word(word, read):
    assert quoted(word) == read


def test_ctrl_c_is_a_line(capsys):
    with pytest.raises(SystemExit) as end, one_sentence():
        raise KeyboardInterrupt
    assert end.value.code == 130 and capsys.readouterr().err == "interrupted: what was written before is whole.\n"


@pytest.mark.parametrize("name", ["ünï", "a b", "a,b", "null", "x=y", "${a}", "it's"])
def test_a_path_that_is_there_is_taken_as_it_is(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    word = quoted(f"ckpt={name}")
    (tmp_path / name).mkdir()
    assert quoted(f"ckpt={name}") == f"ckpt={escaped(name)}" and word != quoted(f"ckpt={name}")
    assert typed_in([quoted(f"ckpt={name}")]) == {"ckpt": name}
