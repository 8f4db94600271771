"""What was probably meant by a word that Hydra could not compose, as one sentence: the choices there are, and what looks alike."""

import re
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.errors import HydraException, MissingConfigException
from omegaconf import DictConfig
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from diffusion.schemas import EvaluateSchema, SampleSchema, TrainSchema
from diffusion.support.errors import did_you_mean

CONF = Path(__file__).parents[1] / "conf"
SCHEMAS = {"train": TrainSchema, "sample": SampleSchema, "evaluate": EvaluateSchema}
ELSEWHERE = {  # what another command, or another program, calls a key
    "ema": "averaged",
    "epochs": "steps",
    "eta": "sampler.eta",
    "max_steps": "steps",
    "num_samples": "n",
    "scale": "guidance.scale",
    "steps": "grid.steps",
}


def plainly(error: Exception) -> str:
    """A composition error with its cause, without Hydra's advice and search path."""
    text, cause = str(error).split("Config search path")[0], error.__cause__
    text = text.split("To append to your")[0].strip().rstrip(".")
    if (said := text.removeprefix("UserError raised while resolving interpolation: ")) != text:  # by a resolver of `config`
        return said.split("full_key: ")[0].strip()
    if text.startswith("BasicSweeper does not support sweep type"):
        return "An interval is for a search: say sweeper=optuna, or values, as KEY=1,2,3."
    missing = (isinstance(error, MissingConfigException) and error.missing_cfg_file) or ""
    if missing.startswith("hydra/launcher/"):  # which a word of ours asks for
        return f"{missing.removeprefix('hydra/')} is not installed: pip install -e .[sweep]."
    if missing:
        text = unknown_choice(*missing.rpartition("/")[::2])
    elif isinstance(cause, ConfigKeyError | ConfigAttributeError):
        text = unknown_key(str(cause.full_key), cause.parent_node)
    elif cause is not None:
        text += f": {str(cause).strip().splitlines()[0]}"
    elif text.startswith("Config group override must be"):  # of GROUP=true, and Hydra does not say of which
        typed = (word.partition("=")[::2] for word in sys.argv[1:] if re.fullmatch(r"\w+=(true|false|null|[\d.]+)", word, re.I))
        text = "; ".join(unknown_choice(*word) for word in typed if word[0] and (CONF / word[0]).is_dir()) or text
    elif found := re.match(r"Could not override '(\w+)'. No match in the defaults list", text):
        text = unknown(found[1])
    else:
        return text if not isinstance(error, HydraException | OmegaConfBaseException) else f"{text}; {advice()}"
    return f"{text}; {advice()}"


def command() -> str:
    """The command that is running, the name of its file of conf/."""
    return Path(sys.argv[0]).stem


def advice() -> str:
    """Where to find the words."""
    file = Path(sys.argv[0])
    return f"`python {f'-m diffusion.{file.stem}' if file.parent.name == 'diffusion' else file.name} --help` lists the groups and keys."


def unknown_choice(group: str, word: str) -> str:
    """The sentence for GROUP=WORD where conf/ has no such file."""
    if not re.search(rf"^ *- (override /)?{group}:", (CONF / f"{command()}.yaml").read_text(), re.M):
        return unknown(group)
    choices = sorted(file.stem for file in (CONF / group).glob("*.yaml"))
    return f"{group}={word} is not one of the choices {', '.join(choices)}{did_you_mean(word, choices, f'{group}=')}"


def unknown_key(full: str, parent: Any) -> str:
    """The sentence for a key that is not there: what looks alike beside it, or has its name elsewhere, and how a key is added."""
    before, _, key = full.rpartition(".")
    beside = {str(name): parent._get_node(name) for name in parent} if isinstance(parent, DictConfig) else {}
    if not before:
        return unknown(key, [f"{group}.{key}" for group, node in beside.items() if isinstance(node, DictConfig) and key in node])
    hint = did_you_mean(key, beside, f"{before}.")
    return f"{full} is not a setting that is there{hint}; one that its class has and its file does not list is added by +{full}=VALUE"


def unknown(key: str, places: Sequence[str] = ()) -> str:
    """The sentence for a key that the command has not; `places` are where there is a setting of this name."""
    keys = [field.name for field in fields(SCHEMAS[command()])]
    meant = [ELSEWHERE[key]] if ELSEWHERE.get(key, "").partition(".")[0] in keys else places[:3]
    hint = f"; did you mean {' or '.join(meant)}" if meant else did_you_mean(key, keys)
    return f"{key} is not a key of this command{hint}"
