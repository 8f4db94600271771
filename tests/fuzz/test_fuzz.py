"""Twenty drawn commands end as they should; and what draws and judges them sees what it is there to see."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
from drawing import COMMANDS, drawn, edges, plain_keys
from judging import judged

from diffusion.support.ranges import Count, Share

SENTENCE = "error: grid.rho=0 must be above 0.\n"


def test_twenty_commands():
    """In a process of its own, which forks. `make fuzz` draws 400."""
    folder = Path(__file__).parent
    result = subprocess.run([sys.executable, folder, "20"], capture_output=True, text=True, cwd=folder.parents[1])
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
    assert "20 commands of seed 0" in result.stdout


@pytest.mark.parametrize(
    "code, err, changed, wrong",
    [
        (0, "a warning\n", ["runs/drawn/config.yaml"], ""),
        (1, "a warning\n" + SENTENCE, [], ""),
        (None, "Traceback", [], ""),  # it was ended after its time
        (1, SENTENCE, ["runs/drawn/config.yaml"], "half-written: runs/drawn/config.yaml"),
        (1, "Traceback (most recent call last):\nTypeError\n", [], "a traceback"),
        (0, "Traceback (most recent call last):\n", [], "a traceback"),
        (1, "", [], "no sentence"),
        (1, SENTENCE + "and more", [], "no sentence"),
        (-11, "", [], "exit code -11"),
        (70, SENTENCE, [], "exit code 70"),
        (1, "error: range() arg 3 must not be zero\n", [], "Python's words: arg 3"),
        (1, "error: 'float' object has no attribute 'rpartition'\n", [], "Python's words: object has no"),
        (1, f"error: {'x' * 1300}\n", [], "a sentence of 1307 letters"),
    ],
)
def test_what_is_wrong_is_seen(code, err, changed, wrong):
    assert judged(code, "", err, changed) == wrong


def test_edges_lie_about_the_bounds():
    assert edges(Count) == ("0", "1", "2", "nan", "inf", "-inf")
    assert {"-5e-324", "0", "0.9999999999999999", "1.0000000000000002", "nan"} <= set(edges(list[Share] | None))
    assert any(leaf.key == "steps" and "0" in leaf.edges for leaf in plain_keys("train"))


def test_a_seed_draws_the_same_words_again(tmp_path):
    """And many different ones: of a hundred commands of each kind hardly two are alike."""
    for command in COMMANDS.values():
        lines = [[" ".join(drawn(random.Random(i), command, here=tmp_path, cache=tmp_path)) for i in range(100)] for _ in range(2)]
        assert lines[0] == lines[1] and len(set(lines[0])) > 60
