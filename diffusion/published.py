"""What papers have measured, beside a number of ours: conf/published/ as plain data, and whether two passports allow the comparison."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any, Self

from diffusion.support.errors import UserError, did_you_mean
from diffusion.support.ranges import Count, Finite, Images, NonNegative, refused

SHOWN = 3  # of a paper's numbers beside one of ours
METRICS = {  # our words of the numbers that are published, as they are asked for
    "fid": "fid",
    "sfid": "sfid",
    "is": "inception_score",
    "precision": "precision_recall",
    "recall": "precision_recall",
    "nll-ode": "nll_ode",
    "nll-vlb": "nll_vlb",
    "fd-dinov2": "fd metric.extractor=DINOv2",
}
PORTS = {"inception": "torch-fidelity's PyTorch port of TensorFlow's weights"}  # of an extractor, the weights that are ours
# What two numbers must have in common: its name, and the words that bring it about, where there are any.
ALIKE = {
    "extractor": ("extractor", "metric={metric}"),
    "resize": ("resize", ""),
    "n": ("number of images", "{n}={theirs}"),
    "dataset": ("data set", "dataset={theirs}"),
    "split": ("split", "dataset.split={theirs}"),
    "real": ("number of real images", ""),
    "image_size": ("image size", "dataset.image_size={theirs}"),
    "conditions": ("conditions of the model", "a training with conditions={theirs}"),
}

NEEDED = ("extractor", "n", "dataset")  # of ALIKE, without which nobody knows what was measured


@dataclass(frozen=True)
class Result:
    """One number of a paper, with what is known of its passport; None is what the paper does not say.

    metric        our word for it, of METRICS
    value         the number
    arxiv, where  the paper, and the table or section in it
    model         which of the paper's models, in its words
    n             number of images, generated, or of a likelihood the data's
    dataset, split, real, image_size    the real images: our word for the data set, its split, how many, their side in pixels
    conditions    what the model was told: none, classes
    extractor, weights, resize    our name of the network, whose weights it had, and how it resized
    sampler, steps, calls, guidance    the sampler with its settings in our names, steps, network calls, guidance's scale (1 is none)
    verified      whether the number was found in a text of the paper, or of others that quote it; not if it is remembered
    note          anything else
    """

    metric: str
    value: Finite
    arxiv: str
    where: str
    model: str | None = None
    n: Images | None = None
    dataset: str | None = None
    split: str | None = None
    real: Images | None = None
    image_size: Count | None = None
    conditions: str | None = None
    extractor: str | None = None
    weights: str | None = None
    resize: str | None = None
    sampler: dict[str, Any] | None = None
    steps: Count | None = None
    calls: Count | None = None
    guidance: NonNegative | None = None
    verified: bool = True
    note: str = ""

    @property
    def source(self) -> str:
        """Where it stands."""
        return f"{self.arxiv}, {self.where}"

    @property
    def label(self) -> str:
        """In a word or two, for a plot."""
        return f"{self.metric} {self.value:g} ({self.arxiv})"

    def __str__(self) -> str:
        of = [f"of {self.n:,} images" if self.n else "", self.model or "", self.way]
        doubt = "" if self.verified else ", not verified"
        return f"{self.metric} {self.value:g} {', '.join(filter(None, of))} ({self.source}{doubt})"

    @property
    def way(self) -> str:
        """How it was sampled, in words."""
        settings = {key: value for key, value in (self.sampler or {}).items() if key != "name"}
        name = " ".join([str((self.sampler or {}).get("name", "")), *(f"{key}={value}" for key, value in settings.items())])
        counts = [f"{n} {word}" for n, word in ((self.steps, "steps"), (self.calls, "calls")) if n]
        return ", ".join(filter(None, [name, *counts, "" if self.guidance is None else f"guidance {self.guidance:g}"]))


@dataclass(frozen=True)
class Comparison:
    """A published number beside one of ours: what forbids to compare the two, each with the words that would allow it, and what is to be
    known though it forbids nothing. `sure` is whether all that is NEEDED is known of both; `distance` says how unlike the two ways to
    sample are, 0 for the same."""

    result: Result
    against: tuple[str, ...]
    notes: tuple[str, ...]
    sure: bool
    distance: int

    @property
    def comparable(self) -> bool:
        """Whether the two may be compared, as far as is known all of it."""
        return self.sure and not self.against

    def __str__(self) -> str:
        verdict = f"not comparable: {'; '.join(self.against)}" if self.against else "comparable" if self.sure else "perhaps comparable"
        return "; ".join([f"{self.result}: {verdict}", *self.notes])


@dataclass(frozen=True)
class Published:
    """The published numbers that a run names, and what is known of the run beside a passport: the side of its pictures, and what its model
    is told. Without any it is empty."""

    results: tuple[Result, ...] = ()
    image_size: int | None = None
    conditions: str | None = None

    @classmethod
    def of(cls, said: Any, config: Mapping[str, Any]) -> Self:
        """Those of `said`, a file of conf/published/, for a run with this configuration. Raises UserError as `results_of`."""
        size = inside(config, "dataset", "image_size")
        return cls(results_of(said), size if isinstance(size, int) else None, conditions_of(config.get("conditions")))

    def beside(self, key: str, passport: Mapping[str, Any]) -> list[Comparison]:
        """Those that may be shown beside the number `key`, such as fid@5k, of ours: what can be compared first, then what was sampled most
        alike; that alone where it was sampled the same way, else no more than SHOWN."""
        kind = family(key.partition("@")[0]) if "/" not in key else ""  # NAME/error is no number of its own
        found = [self.compared(result, passport) for result in self.results if family(result.metric) == kind]
        found.sort(key=lambda comparison: (len(comparison.against), comparison.distance))
        return [comparison for comparison in found if comparison.distance == 0][:1] or found[:SHOWN]

    def compared(self, theirs: Result, passport: Mapping[str, Any]) -> Comparison:
        """One published number beside ours with this passport."""
        ours = {"image_size": self.image_size, "conditions": self.conditions, **facts_of(passport)}
        if theirs.extractor != ours["extractor"]:  # whose resize goes with it
            del ours["resize"]
        both = [(key, getattr(theirs, key), ours[key]) for key in ALIKE if key in ours]
        against = tuple(forbidden(key, theirs, our) for key, their, our in both if None not in (their, our) and their != our)
        unsaid = [ALIKE[key][0] for key, their, our in both if their is None is not our]
        unknown = [ALIKE[key][0] for key, their, our in both if our is None is not their]
        sure = not {ALIKE[key][0] for key in NEEDED} & {*unsaid, *unknown}
        distance = apart(theirs, passport)
        port = PORTS.get(theirs.extractor or "") if theirs.extractor == ours["extractor"] else None
        notes = [
            f"its weights: {theirs.weights or 'not said'}, ours: {port} ({inside(passport, 'extractor', 'weights_hash')})" if port else "",
            f"the paper does not say: {', '.join(unsaid)}" if unsaid else "",
            f"not known of ours: {', '.join(unknown)}" if unknown else "",
            "sampled in another way" if distance and theirs.way else "",
            theirs.note,
        ]
        return Comparison(theirs, against, tuple(filter(None, notes)), sure, distance)


NOTHING = Published()


def results_of(said: Any, common: Mapping[str, Any] = {}) -> tuple[Result, ...]:
    """The numbers of a file of conf/published/: `results` lists them, and what stands beside that list is common to all. One of them may
    be such a list again.

    Raises UserError for what is no such file; nothing, or an empty mapping, holds none."""
    if not said:
        return ()
    if not isinstance(said, Mapping) or not isinstance(rows := said.get("results"), list):
        raise UserError("published has no list of results: say published=WORD of conf/published/, or published=none.")
    above = {**common, **{key: value for key, value in said.items() if key != "results"}}
    parts = [results_of(row, above) if inside(row, "results") else (result_of(above, row),) for row in rows]
    return tuple(result for part in parts for result in part)


def result_of(common: Mapping[str, Any], row: Any) -> Result:
    """One number of a file. Raises UserError for what is not known, missing, or out of its range."""
    declared = {field.name: field.type for field in fields(Result)}
    values = {**common, **row} if isinstance(row, Mapping) else {"results": row}
    if unknown := [key for key in values if key not in declared]:
        raise UserError(f"published.{unknown[0]} says nothing of a published number{did_you_mean(str(unknown[0]), declared)}.")
    if missing := [key for key in ("metric", "value", "arxiv", "where") if values.get(key) is None]:
        raise UserError(f"published.results has a number without {missing[0]}.")
    for key, value in values.items():
        if wrong := refused(value, declared[key]):
            raise UserError(f"published.{key}{wrong}.")
    if values["metric"] not in METRICS:
        raise UserError(f"published.metric={values['metric']} is not one of {', '.join(METRICS)}.")
    if not re.fullmatch(r"\d{4}\.\d{4,5}", values["arxiv"]):
        raise UserError(f"published.arxiv={values['arxiv']:.40} is not the number of a paper, as 2006.11239.")
    if not isinstance(values.get("sampler", {}), Mapping | None):
        raise UserError("published.sampler is no mapping of a sampler's name and settings.")
    return Result(**values)


def headline(said: Any) -> str:
    """A file in one line, for the beginning of a training: of each metric the first number, and how many more there are."""
    by_metric: dict[str, list[Result]] = {}
    for result in results_of(said):
        by_metric.setdefault(result.metric, []).append(result)
    return "; ".join(f"{first}{f' and {len(more)} more' if more else ''}" for first, *more in by_metric.values())


def inside(node: Any, *keys: str) -> Any:
    """What plain data hold at a path of keys; None where there is nothing."""
    for key in keys:
        node = node.get(key) if isinstance(node, Mapping) else None
    return node


def family(word: str) -> str:
    """What tells metrics apart whose numbers are never compared: a Fréchet distance is one whatever its extractor."""
    return "fd" if word == "fid" or (word.startswith("fd-") and "infinity" not in word) else word


def conditions_of(conditions: Any) -> str | None:
    """What a run's model is told, in our word: none, classes, or another class's name; None where it is not known."""
    name, number = str(inside(conditions, "_target_") or "").rpartition(".")[2], inside(conditions, "num_classes")
    if name == "Unconditional" or (name == "Classes" and number == 0):
        return "none"
    return None if name in ("", "Classes") and number is None else name.lower()


def facts_of(passport: Mapping[str, Any]) -> dict[str, Any]:
    """What a passport of ours says of ALIKE, None where it does not know. What is no part of the number is left out: the real images of a
    score that looks at none."""
    reference = {key: inside(passport, "reference", name) for key, name in (("dataset", "name"), ("split", "split"), ("real", "n"))}
    if inside(passport, "reference", "file") and reference["real"] is None:  # a mean and a covariance, which do not say of what
        reference = dict.fromkeys(reference)
    if reference["real"] == 0:
        reference = {"dataset": reference["dataset"]}
    of = {key: inside(passport, "extractor", name) for key, name in (("extractor", "name"), ("resize", "resize"))}
    return {**of, "n": inside(passport, "n") or None, **reference}


def forbidden(key: str, theirs: Result, ours: Any) -> str:
    """One reason against a comparison, with the words that would remove it."""
    name, words = ALIKE[key]
    value = getattr(theirs, key)
    typed = words.format(metric=METRICS[theirs.metric], theirs=value, n="metric.images" if theirs.metric.startswith("nll") else "metric.n")
    shown = [f"{side:,}" if isinstance(side, int) else str(side) for side in (value, ours)]
    return f"{name} {shown[0]} there, {shown[1]} here" + (f" ({typed})" if typed else "")


def apart(theirs: Result, passport: Mapping[str, Any]) -> int:
    """How many things about the way to sample differ, the sampler's name counted for most. Without a guidance the scale is 1."""
    ours = inside(passport, "sampler") or {}
    settings = theirs.sampler or {}
    other = sum(inside(ours, key) != value for key, value in settings.items() if key != "name")
    steps = theirs.steps is not None and theirs.steps != inside(ours, "grid", "steps")
    scale = scale_of(passport.get("guidance"))
    guided = theirs.guidance is not None and theirs.guidance != (1.0 if scale is None else scale)
    return 4 * (inside(ours, "name") != settings.get("name", "")) + 2 * steps + 2 * guided + other


def scale_of(guidance: Any) -> float | None:
    """The scale of the outermost stage of a passport's guidance that has one; None without."""
    while isinstance(guidance, Mapping) and "scale" not in guidance:
        guidance = guidance.get("denoiser")
    return guidance["scale"] if isinstance(guidance, Mapping) else None
