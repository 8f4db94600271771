"""--help is conf/'s own text: every key that may be said, every choice, and nothing slow is imported for it."""

import re
import subprocess
import sys

import pytest
import yaml

from diffusion.manual import manual
from diffusion.mistyped import CONF

PROGRAMS = {"train": ["train.py"], "sample": ["sample.py"], "evaluate": ["-m", "diffusion.evaluate"]}


@pytest.mark.parametrize("command", PROGRAMS)
def test_every_key_and_every_choice_is_named(command):
    text = manual(command)
    keys = yaml.safe_load((CONF / f"{command}.yaml").read_text()).keys() - {"defaults", "hydra"}
    assert {"seed", "trust"} < keys
    for key in keys:
        assert re.search(rf"^{key}: ", text, re.M), key
    for group in re.findall(r"^  - (\w+): ", (CONF / f"{command}.yaml").read_text(), re.M):
        if group not in ("paths", "callbacks"):
            line = re.search(rf"^{group}: (.*\n(?:    .*\n)*)", text, re.M)[1]
            assert {path.stem for path in (CONF / group).glob("*.yaml")} == {*re.split(r",\s+", line.strip())}


@pytest.mark.parametrize("command", PROGRAMS)
@pytest.mark.parametrize("word", ["--help", "-h"])
def test_the_command_prints_it(command, word):
    said = subprocess.run([sys.executable, *PROGRAMS[command], "seed=1", word], cwd=CONF.parent, capture_output=True, text=True, timeout=60)
    assert (said.returncode, said.stdout, said.stderr) == (0, manual(command) + "\n", "")
