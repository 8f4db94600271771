"""A search by Optuna for the words with which a run's first metric is best, which goes on where it was stopped."""

import logging
import math
import os
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, IntervalSweep, Override, RangeSweep
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from diffusion.config import configuration
from diffusion.support.errors import UserError
from diffusion.support.ranges import Count, Seed, refused
from diffusion.sweeps.jobs import first_metric
from diffusion.sweeps.ledger import HIDDEN, Ledger, sweep_name

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution

log = logging.getLogger(__name__)


class Trials(Sweeper):
    """`n_trials` jobs in all, `n_jobs` at a time, whose swept words Optuna's TPE chooses: a number of KEY=interval(a,b), on a logarithmic
    scale by tag(log,interval(a,b)), a whole one by int(interval(a,b)), one of KEY=a,b,c or of range(a,b).

    The study is a file beside the sweep's rows. A trial whose job failed is marked failed; those that were running when the sweep was
    stopped are tried again, with the same words, so that their runs go on."""

    def __init__(self, n_trials: Count, n_jobs: Count, seed: Seed, params: dict[str, str] | None = None) -> None:
        self.n_trials, self.n_jobs, self.seed, self.params = n_trials, n_jobs, seed, params or {}

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Hydra's hook."""
        self.hydra_context, self.config = hydra_context, config
        self.parser = OverridesParser.create(config_loader=hydra_context.config_loader)
        self.task = OmegaConf.masked_copy(config, [str(key) for key in config if key != "hydra"])
        self.task.resume = None
        self.runs, self.name = Path(config.hydra.sweep.dir), sweep_name(config)
        self.launcher: Launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def sweep(self, arguments: list[str]) -> dict[str, Any]:
        """Hydra's hook: all trials, and the best. Raises UserError where nothing is searched, or nothing says what is good."""
        for key, value, kind in (("n_trials", self.n_trials, Count), ("n_jobs", self.n_jobs, Count), ("seed", self.seed, Seed)):
            if wrong := refused(value, kind):
                raise UserError(f"sweeper.{key}{wrong}.")
        if int(os.environ.get("WORLD_SIZE", 1)) > 1:
            raise UserError("sweeper=optuna asks in one process: leave torchrun out, and say trainer.devices=N.")
        if find_spec("optuna") is None:
            raise UserError("sweeper=optuna needs Optuna: pip install -e .[sweep].")
        typed = [f"{key}={value}" for key, value in self.params.items()] + arguments
        parsed = self.parser.parse_overrides(typed)
        space = {word.get_key_element(): distribution(word) for word in parsed if word.is_sweep_override()}
        fixed = [f"{word.get_key_element()}={word.get_value_element_as_str()}" for word in parsed if not word.is_sweep_override()]
        if not space:
            raise UserError("sweeper=optuna has nothing to search: say optimizer.lr=interval(1e-5,1e-3), or schedule=linear,cosine.")
        config, said = configuration(self.task, self.runs)
        metric = self.metric(config, space)
        apart = sorted(f"{key}={value}" for key, value in self.params.items())  # which are not in the command's configuration
        study = self.study(bool(metric.higher_is_better), space, [yaml.safe_load(said["words.yaml"])["hash"], *apart])
        while (left := self.n_trials - len(tried(study))) > 0:
            self.batch(study, space, fixed, min(left, self.n_jobs))
        return report(study)

    def metric(self, config: Mapping[str, Any], space: dict[str, Any]) -> Any:
        """The metric that is searched by. Raises UserError if there is none."""
        metric = first_metric(config["metric"])
        if metric is None or "metric" in space:
            raise UserError("sweeper=optuna searches by the first metric of all the runs: say metric=fd_digits, fid or another, and one.")
        return metric

    def study(self, higher: bool, space: dict[str, Any], fixed: list[str]) -> "Study":
        """That of this sweep's name, with what it knows already. It says what it is a search of: the words that are searched, and all that
        is the same in its trials, `fixed`, since a number of another metric or data set says nothing of these.

        Raises UserError for another search under the same name, and for one of an older version, which did not say."""
        import optuna
        from optuna.storages import JournalStorage
        from optuna.storages.journal import JournalFileBackend

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        storage = JournalStorage(JournalFileBackend(str(self.runs / HIDDEN / f"{self.name}.study")))
        direction = optuna.study.StudyDirection.MAXIMIZE if higher else optuna.study.StudyDirection.MINIMIZE
        study = optuna.create_study(storage=storage, study_name="sweep", direction=direction, load_if_exists=True)
        search = {"space": {key: optuna.distributions.distribution_to_json(kind) for key, kind in space.items()}, "fixed": fixed}
        if study.direction != direction or (study.user_attrs or {"search": search}).get("search") != search:
            raise UserError(
                f"name={self.name} is a search of other words, by another metric, or of an older version: give another name=NAME."
            )
        study.set_user_attr("search", search)
        ledger = Ledger.current()
        for trial in study.trials:
            if trial.state == optuna.trial.TrialState.RUNNING:  # when the sweep was stopped
                study.enqueue_trial(trial.params, user_attrs={"again": trial.number})
                study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
            elif ledger and "row" in trial.user_attrs:
                ledger.record(trial.user_attrs["row"])
        study.sampler = optuna.samplers.TPESampler(seed=self.seed + len(study.trials), constant_liar=self.n_jobs > 1)
        return study

    def batch(self, study: "Study", space: "dict[str, BaseDistribution]", fixed: Sequence[str], size: int) -> None:
        """Ask for `size` trials, run them, and tell their values: NaN, of a job that failed or whose run has no number, is none."""
        from optuna.trial import TrialState

        trials = [study.ask(space) for _ in range(size)]
        jobs = [[*fixed, *(f"{key}={value}" for key, value in trial.params.items())] for trial in trials]
        try:
            self.validate_batch_is_legal(jobs)
        except Exception:
            for trial in trials:
                study.tell(trial, state=TrialState.FAIL)
            raise
        first = 1 + max((trial.user_attrs["job"] for trial in study.trials if "job" in trial.user_attrs), default=-1)
        results = self.launcher.launch(jobs, initial_job_idx=first)
        ledger = Ledger.current()
        rows = {row["job"]: row for row in ledger.rows()} if ledger else {}
        for number, trial, result in zip(range(first, first + size), trials, results, strict=True):
            trial.set_user_attr("job", number)
            if number in rows:
                trial.set_user_attr("row", rows[number])
            value = result.return_value
            failed = value is None or not math.isfinite(value)
            study.tell(trial, **({"state": TrialState.FAIL} if failed else {"values": value}))


def distribution(word: Override) -> "BaseDistribution":
    """What a swept word may be. Raises UserError for what is no choice, range or interval."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    swept: Any = word.value()  # a sweep, of which Hydra's types do not know
    if isinstance(swept, ChoiceSweep | RangeSweep):
        return CategoricalDistribution(list(word.sweep_string_iterator()))
    if not isinstance(swept, IntervalSweep):
        raise UserError(f"{word.input_line} cannot be searched: say {word.get_key_element()}=interval(a,b), or a,b,c.")
    ends, log_scale = (swept.start, swept.end), "log" in swept.tags
    try:
        return (IntDistribution if isinstance(swept.start, int) else FloatDistribution)(*ends, log=log_scale)  # type: ignore[arg-type]
    except ValueError as error:
        raise UserError(f"{word.input_line} is no interval to search: {error}.") from None


def tried(study: "Study") -> list[Any]:
    """The trials that have come to an end, and were not stopped with their sweep."""
    again = {trial.user_attrs.get("again") for trial in study.trials}
    return [trial for trial in study.trials if trial.state.is_finished() and trial.number not in again]


def report(study: "Study") -> dict[str, Any]:
    """Say which trial was the best, and its words; of a search in which all failed, nothing."""
    valued = [trial for trial in tried(study) if trial.value is not None]
    if not valued:
        log.info("no trial came to a value")
        return {}
    best = study.best_trial
    said = " ".join(f"{key}={value}" for key, value in best.params.items())
    log.info("best of %d: job %s, %.4g, with %s", len(valued), best.user_attrs["job"], best.value, said)
    return {"name": "optuna", "best_evaluated_params": best.params, "best_evaluated_result": best.value}
