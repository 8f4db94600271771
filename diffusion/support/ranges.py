"""Numbers that say which of their values make sense: `rho: Positive = 7.0` in a signature.

`build` reads the annotations of whatever a configuration names, the commands those of their plain keys, and an object that is made
directly its own, if it is `Checked`. NaN is in no range, and infinity only in one that says so.
"""

import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from inspect import Parameter, isclass, signature
from math import inf, isfinite, nan
from numbers import Real
from pathlib import Path
from typing import Annotated, Any, Literal

SCALARS = (bool, int, float, str)
PLAIN = (*SCALARS, list, tuple, dict)
OPEN = (object, Any, Parameter.empty)  # annotations that anything fits


@dataclass(frozen=True)
class Range:
    """The numbers from `least` to `most`, or strictly `above` and `below`; infinity too if it is `endless`."""

    least: float = -inf
    most: float = inf
    above: float = -inf
    below: float = inf
    endless: bool = False

    def __contains__(self, value: float) -> bool:
        strictly = (self.above < value or self.above == -inf) and (value < self.below or self.below == inf)
        return self.least <= value <= self.most and strictly and (self.endless or isfinite(value))

    def __str__(self) -> str:
        if isfinite(self.least) and isfinite(self.most):
            return f"between {self.least} and {self.most}"
        said = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in said.items() if isfinite(bound)) or (
            "a number" if self.endless else "finite"
        )


Finite = Annotated[float, Range()]  # any number but NaN and infinity
Positive = Annotated[float, Range(above=0)]
NonNegative = Annotated[float, Range(least=0)]
Limit = Annotated[float, Range(above=0, endless=True)]
Level = Annotated[float, Range(least=0, endless=True)]  # of noise
Share = Annotated[float, Range(least=0, most=1)]
Fraction = Annotated[float, Range(above=0, most=1)]  # a share that is not nothing
Decay = Annotated[float, Range(least=0, below=1)]
Probability = Annotated[float, Range(above=0, below=1)]  # of neither never nor always
Count = Annotated[int, Range(least=1)]
Natural = Annotated[int, Range(least=0)]
Few = Annotated[int, Range(least=1, most=100_000)]  # of what memory is taken for: widths, layers, rows, time steps
Multiple = Annotated[float, Range(least=0.25, most=100_000)]  # of a width
Some = Annotated[int, Range(least=0, most=100_000)]
Images = Annotated[int, Range(least=1, most=10_000_000)]
Several = Annotated[int, Range(least=2, most=10_000_000)]  # images enough for a spread
Order = Annotated[int, Range(least=1, most=3)]  # of a solver
Seed = Annotated[int, Range(least=0, most=2**32 - 1)]

# What the classes of other packages do not declare, by the package and the argument.
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "torch.optim": {
        **dict.fromkeys(("lr", "eps"), Positive),
        **dict.fromkeys(("weight_decay", "momentum", "dampening"), NonNegative),
        "betas": tuple[Decay, Decay],
        "alpha": Decay,
    },
    "pytorch_lightning": {
        **dict.fromkeys(("max_steps", "accumulate_grad_batches"), Count),
        "num_nodes": Count | Literal["auto"],  # those on which a launcher has started it
        "devices": Annotated[int, Range(least=-1)] | str | list[Natural],  # -1 are all there are
        "max_epochs": Annotated[int, Range(least=-1)] | None,
        "gradient_clip_val": NonNegative | None,
        "flush_logs_every_n_steps": Count,
        "version": Natural | str | None,
    },
}


def annotations(target: Callable, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The annotation of each parameter of a class or a function, or what OTHERS says of it."""
    maker = target.__init__ if isclass(target) else target  # a class of ours may be made as another package's
    module = getattr(maker, "__module__", None) or ""
    others = next((said for package, said in OTHERS.items() if module.startswith(package)), {})
    return {name: others.get(name, p.annotation) for name, p in parameters.items()}


def refused(value: object, annotation: Any) -> str | None:
    """What is wrong with the value of a setting, as the rest of a sentence that begins with its key: "=0 must be above 0". None for a value
    of the annotation's type and range."""
    if typing.get_origin(annotation) is Literal and value not in typing.get_args(annotation):
        return f"={value} is not one of {', '.join(map(str, typing.get_args(annotation)))}"
    if not fits(value, annotation):
        return f"={value} should be of type {spelled(annotation)}"
    if (found := outside(value, annotation)) is not None:
        place, number, limits = found
        null = ", or null" if type(None) in typing.get_args(annotation) else ""
        return f"{place}={number} must be {limits}{null}"
    return None


def outside(value: object, annotation: Any) -> tuple[str, object, Range] | None:
    """(its place, "" or "[i]", the number, the range that it is outside of) of the first number outside of its declared range, or None. A
    float that declares none, as one of a class of the user's, may be anything but NaN."""
    if choices := _choices(annotation):
        problems = [outside(value, choice) for choice in choices if fits(value, choice)]
        return None if None in problems or not problems else problems[0]
    if isinstance(value, list | tuple):
        found = ((i, outside(v, inner)) for i, (v, inner) in enumerate(zip(value, _elements(annotation, len(value)), strict=True)))
        return next(((f"[{i}]{inner[0]}", *inner[1:]) for i, inner in found if inner is not None), None)
    if isinstance(value, bool) or not isinstance(value, Real):
        return None
    declared = [said for said in getattr(annotation, "__metadata__", ()) if isinstance(said, Range)]
    limits = declared or ([Range(endless=True)] if annotation is float else [])
    return next((("", value, limit) for limit in limits if _number(value) not in limit), None)


def _number(value: Real) -> float:
    """As a float; a whole number beyond all of them is none."""
    try:
        return float(value)
    except OverflowError:
        return nan


def fits(value: object, annotation: Any) -> bool:
    """Whether a value is of an annotation's type, as far as plain data can be told: a word, a number or a list is never an object."""
    if choices := _choices(annotation):
        return any(fits(value, choice) for choice in choices)
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return fits(value, inside[0])
    if origin is Literal:
        return value in inside
    if annotation is type(None):
        return value is None
    if annotation in SCALARS:
        return _of_scalar(value, annotation)
    if annotation is Path:
        return isinstance(value, str | Path)
    if isclass(origin) and issubclass(origin, Sequence):
        return _of_sequence(value, annotation)
    if origin is Callable or (isclass(annotation) and annotation not in OPEN):
        protocol = getattr(annotation, "_is_protocol", False)  # what is called or has methods, as no plain value has
        return not isinstance(value, PLAIN) or (isclass(annotation) and not protocol and isinstance(value, annotation))
    return True


def _of_scalar(value: object, kind: type) -> bool:
    if isinstance(value, bool):
        return kind is bool
    return isinstance(value, int | float) if kind is float else isinstance(value, kind)


def _of_sequence(value: object, annotation: Any) -> bool:
    if not isinstance(value, list | tuple):
        return False
    inner = typing.get_args(annotation)
    if typing.get_origin(annotation) is tuple and ... not in inner and len(value) != len(inner):
        return False
    return all(fits(v, a) for v, a in zip(value, _elements(annotation, len(value)), strict=True))


def _elements(annotation: Any, n: int) -> list[Any]:
    """The annotation of each of a sequence's n elements; Any where none is said."""
    inner = [a for a in typing.get_args(annotation) if a is not ...]
    return inner * n if len(inner) == 1 and typing.get_origin(annotation) is not Annotated else inner if len(inner) == n else [Any] * n


def _choices(annotation: Any) -> tuple[Any, ...]:
    """The members of a union; none for anything else."""
    return typing.get_args(annotation) if typing.get_origin(annotation) in (types.UnionType, typing.Union) else ()


def plain_type(annotation: Any) -> Any:
    """The annotation without its ranges and choices, and with lists for tuples."""
    if choices := _choices(annotation):
        return typing.Union[tuple(map(plain_type, choices))]  # noqa: UP007 (of members that are not known here)
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return plain_type(inside[0])
    if origin is Literal:
        return type(inside[0])
    return list[plain_type(inside[0])] if origin in (list, tuple) else annotation  # type: ignore[misc]


def spelled(annotation: Any) -> str:
    """An annotation as a message names it."""
    if choices := _choices(annotation):
        return " | ".join(spelled(choice) for choice in choices)
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return spelled(inside[0])
    if origin is Literal:
        return " | ".join(map(str, inside))
    if origin is tuple and ... not in inside:
        return f"[{', '.join(map(spelled, inside))}]"
    if isclass(origin) and issubclass(origin, Sequence):
        return f"list of {spelled(inside[0])}"
    return "null" if annotation is type(None) else getattr(annotation, "__name__", str(annotation))


def require(made: Any, given: Mapping[str, Any]) -> None:
    """Raises ValueError for the first number of `given`, arguments of the object's `__init__` by name, that is outside of its range."""
    kind: Any = type(made)
    for name, annotation in _declared(kind).items():
        if name in given and (found := outside(given[name], annotation)) is not None:
            place, number, limits = found
            raise ValueError(f"{name}{place}={number} of {kind.__name__} must be {limits}.")


@cache
def _declared(kind: type) -> dict[str, Any]:
    return {name: parameter.annotation for name, parameter in signature(kind).parameters.items()}


class Checked:
    """The base of frozen dataclasses whose numbers are in the ranges that their annotations declare, however the objects are made.

    Raises ValueError for a number that is not. A subclass with a `__post_init__` of its own calls this one first."""

    def __post_init__(self) -> None:
        require(self, vars(self))
