"""How a command runs: the words as they are typed, errors as one sentence with an exit code, and no empty folder left behind.

Nothing slow is imported here, so that --help and a mistyped word answer at once."""

import logging
import os
import re
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from diffusion.config import escaped, job_words
from diffusion.manual import manual
from diffusion.mistyped import CONF, command, plainly
from diffusion.schemas import PATHS, TEXTS
from diffusion.support.commands import running
from diffusion.support.errors import SENTENCES, TRACEBACK, UserError, one_sentence
from diffusion.support.files import writing_in
from diffusion.support.progress import speaks
from diffusion.support.trust import trusting

GROUPS = {path.name for path in CONF.iterdir() if path.is_dir()} if CONF.is_dir() else set()
PLAIN = re.compile(r"(?!null$|true$|false$)[\w./:+-]*", re.I | re.A)  # a path that Hydra's grammar reads as it is
NUMBER = re.compile(r"(?<![^\[,])[-+]?(\d[\d_.]*(e[-+]?\d*)?|\.\d+|nan|inf)(?![^\],])", re.I)  # the whole of a value or of a list's element


def shell(main: Callable[[], None]) -> None:
    """Run a Hydra main: an error that the user can correct becomes one sentence on standard error and exit code 1; HYDRA_FULL_ERROR=1 for a
    traceback."""
    if {"--help", "-h"} & {*sys.argv}:
        return print(manual(command()))
    with running(command(), sys.argv[1:]):
        sys.argv[1:] = [quoted(word) for word in sys.argv[1:]]
        _run(main)


def _run(main: Callable[[], None]) -> None:
    try:
        main() if TRACEBACK else _shell(main)
    finally:
        if "diffusion.support.devices" in sys.modules:  # else there is no group of processes to leave
            sys.modules["diffusion.support.devices"].leave_ranks()


def _shell(main: Callable[[], None]) -> None:
    os.environ |= {"HYDRA_FULL_ERROR": "1", SENTENCES: "1"}  # Hydra then hands its errors on instead of printing them; see `begin`
    warnings.formatwarning = in_a_line
    try:
        with one_sentence(HydraException, OmegaConfBaseException, say=plainly), disk_s_end():
            main()
        sys.stdout.flush()
    except BrokenPipeError:  # of `--help | head`: who reads has enough, and Python would say so once more at its end
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def in_a_line(message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None) -> str:
    """A warning without the line of code that gave it, which is for who reads code."""
    return f"{category.__name__}: {' '.join(str(message).split())}\n"


def quoted(word: str) -> str:
    """KEY=VALUE as Hydra reads it where the value holds a `=` of its own, as a file's name may: quoted, each of several apart. A number is
    quoted where a group's choice is to be, which Hydra, if it is not among the choices, answers with an empty message or a traceback. Of a
    text, and of the path of something that is there, no letter means anything to Hydra."""
    key, equals, value = word.partition("=")
    if key in TEXTS or (key in PATHS and not PLAIN.fullmatch(value) and os.path.exists(value)):
        return f"{key}={escaped(value)}"
    if key in GROUPS:
        return key + equals + NUMBER.sub(r'"\g<0>"', value)
    if "=" not in value or not re.fullmatch(r"[+~]*[\w./@:]+", key) or re.match(r"['\"\[{]|\w+\(", value):
        return word
    parts = (f'"{part}"' if "=" in part and '"' not in part else part for part in value.split(","))
    return f"{key}{equals}{','.join(parts)}"


@contextmanager
def begin(folder: Path | None = None, trust: Sequence[str] = (), places: Sequence[Path] | None = None) -> Iterator[None]:
    """The inside of a Hydra main: errors, Lightning's too, as a sentence, packages that are trusted, `places` to write in where the command
    reads a run's folder, and no empty folder left behind."""
    if not TRACEBACK:
        os.environ.pop("HYDRA_FULL_ERROR", None)
    with suppress(ValueError):  # not the main thread, which alone may
        signal.signal(signal.SIGTERM, lambda signum, _: sys.exit(128 + signum))  # to tidy up; a training has its own
    if not speaks():  # under torchrun and srun the first rank speaks for all
        logging.getLogger().setLevel(logging.WARNING)
    try:
        with (
            one_sentence(OmegaConfBaseException, say=plainly),
            one_sentence(ModuleNotFoundError),
            lightning_s_errors(),
            disk_s_end(),
            trusting(trust),
            writing_in(places),
            running(str(HydraConfig.get().job.config_name), job_words()) if HydraConfig.initialized() else nullcontext(),
        ):
            yield
    finally:
        if folder is not None:
            with suppress(OSError):  # it has something in it
                folder.rmdir()


def sentence(error: Exception) -> str:
    """An error that the user can correct, as a sentence; empty for any other."""
    known = isinstance(error, UserError | ValueError | OmegaConfBaseException | ModuleNotFoundError)
    return " ".join((plainly(error) if isinstance(error, OmegaConfBaseException) else str(error)).split()) if known else ""


@contextmanager
def disk_s_end() -> Iterator[None]:
    """A file that cannot be written or read, as on a full disk, as a UserError."""
    try:
        yield
    except (BrokenPipeError, HydraException):  # of a reader who has enough; and Hydra's, of a choice that is not there, is an OSError
        raise
    except OSError as error:
        name = f"{error.filename}: " if error.filename else ""
        raise UserError(f"{name}{error.strerror or error}; what was written before is whole.") from None


@contextmanager
def lightning_s_errors() -> Iterator[None]:
    """Lightning's refusals as a UserError, without importing Lightning."""
    try:
        yield
    except Exception as error:
        known = sys.modules.get("pytorch_lightning.utilities.exceptions")
        if known and isinstance(error, known.MisconfigurationException):
            raise UserError(str(error)) from error
        raise
