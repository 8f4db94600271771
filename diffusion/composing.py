"""The words of `diffusion.evaluate` composed by another command, as often as it needs: Hydra without its main."""

import logging
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra import compose, initialize_config_dir
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from diffusion.config import register, typed_in
from diffusion.mistyped import CONF, SCHEMAS, plainly
from diffusion.schemas import known
from diffusion.shell import in_a_line, quoted
from diffusion.support.errors import UserError, one_sentence

WRITERS = {"metrics", "compare", "pareto", "attribute", "diagnose"}  # who write NAME.jsonl, .md, .json or .png into a run's folder


@contextmanager
def composing() -> Iterator[None]:
    """Within the context words can be composed, a mistake is a sentence that knows the keys of `diffusion.evaluate`, and what is logged is
    printed."""
    register()
    sys.argv[0] = str(CONF.parent / "diffusion" / "evaluate.py")
    warnings.formatwarning = in_a_line
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)  # as conf/hydra's job_logging
    with (
        one_sentence(HydraException, OmegaConfBaseException, say=plainly),
        initialize_config_dir(str(CONF), version_base="1.3"),
        one_sentence(),
    ):
        yield


def own_name(words: Sequence[str], program: str) -> list[str]:
    """name=PROGRAM, if the words say no name. Raises UserError for the name of what another command, or a training, writes."""
    own = [word.partition("=")[2] for word in words if word.startswith("name=")]
    if taken := {*own} & WRITERS - {program}:
        raise UserError(f"name={min(taken)} is the name of other files of a run's folder: say another.")
    return [] if own else [f"name={program}"]


def composed_of(words: Sequence[str], program: str = "evaluate") -> tuple[DictConfig, dict[str, str]]:
    """(the configuration of these words KEY=VALUE of a command, the words by key). Raises UserError for a key that is none."""
    cfg = compose(program, [quoted(word) for word in words])
    known(cfg, SCHEMAS[program])
    return cfg, typed_in(words)


def alternatives(words: Sequence[str]) -> list[list[str]]:
    """Of each word KEY=VALUE the words that it stands for: of KEY=1,2 one for each value, of any other itself."""
    parsed = OverridesParser.create().parse_overrides([quoted(word) for word in words])
    return [
        [f"{word.partition('=')[0]}={value}" for value in override.sweep_string_iterator()] if override.is_sweep_override() else [word]
        for word, override in zip(words, parsed, strict=True)
    ]


def read_word(word: str) -> tuple[str, Any]:
    """(the key, the value as plain data) of a word KEY=VALUE. Raises UserError for anything else: a flag, a key that is taken away, several
    values in turn."""
    try:
        (override,) = OverridesParser.create().parse_overrides([quoted(word)])
        if override.is_delete() or override.is_sweep_override() or override.package or "=" not in word:
            raise ValueError
        return override.key_or_group, override.value()
    except (HydraException, ValueError):
        raise UserError(f"{word!r:.80} is not one KEY=VALUE.") from None
