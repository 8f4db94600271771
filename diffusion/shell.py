"""How a command runs: errors as one sentence with an exit code, and Lightning's messages in Hydra's log."""

import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from diffusion.support.errors import TRACEBACK, one_sentence


def shell(main: Callable[[], None]) -> None:
    """Run a Hydra main: what the user can mend is one sentence on standard error and exit code 1; HYDRA_FULL_ERROR=1 for a traceback."""
    if TRACEBACK:
        return main()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # Hydra then hands its errors on instead of printing them; see `begin`
    with one_sentence(HydraException, OmegaConfBaseException, say=plainly):
        main()


def plainly(error: Exception) -> str:
    """A composition error with its cause, without Hydra's advice and search path."""
    text, cause = str(error).split("Config search path")[0], error.__cause__
    text = text.split("To append to your config")[0].strip().rstrip(".")
    if cause is not None:
        text += f": {str(cause).strip().splitlines()[0]}"
    known = HydraException in type(error).__mro__ or OmegaConfBaseException in type(error).__mro__
    return f"{text}; `python {Path(sys.argv[0]).name} --help` lists the groups and keys." if known else text


@contextmanager
def begin(folder: Path | None = None) -> Iterator[None]:
    """The inside of a Hydra main: errors as a sentence, Lightning's messages in Hydra's log, and no empty folder left behind.

    What is slow to import is imported from here on, so that --help and a mistyped word answer at once."""
    from pytorch_lightning.utilities.exceptions import MisconfigurationException, SIGTERMException

    if not TRACEBACK:
        os.environ.pop("HYDRA_FULL_ERROR", None)
    quiet()
    try:
        with one_sentence(MisconfigurationException, ModuleNotFoundError):
            yield
    except SIGTERMException:
        sys.exit(143)
    finally:
        if folder is not None:
            with suppress(OSError):  # it has something in it
                folder.rmdir()


def quiet() -> None:
    """Lightning's messages to the run's log, without its advertisements and its warnings about itself."""
    warnings.filterwarnings("ignore", module="pytorch_lightning.utilities._pytree")
    if int(os.environ.get("RANK", 0)):  # under torchrun the first rank speaks for all
        logging.getLogger().setLevel(logging.WARNING)
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
