"""Several runs from one command, `python train.py -m`: what each job is and comes to, and the table of them.

A job whose configuration is that of a run in the sweep's folder is skipped if that run is finished, and goes on with it if not, so that the
command of a sweep that was stopped goes on with it. A job that fails is a row of the table, and ends no other."""

from diffusion.sweeps.end import Sweep
from diffusion.sweeps.jobs import one_job, require_one_run, swept

__all__ = ["Sweep", "one_job", "require_one_run", "swept"]
