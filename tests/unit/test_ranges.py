"""Numbers have ranges: every number that a configuration can set declares one, and whatever is outside of it is one sentence."""

import re
import typing
from dataclasses import dataclass, fields, replace
from inspect import Parameter, signature
from math import inf, isfinite, nan, nextafter
from pathlib import Path
from typing import Annotated

import numpy as np
import pytest
import yaml
from omegaconf import OmegaConf

from diffusion.samplers import DDIM, Heun
from diffusion.schemas import EvaluateSchema, SampleSchema, TrainSchema, bare, known
from diffusion.support.build import build, locate
from diffusion.support.errors import UserError
from diffusion.support.ranges import OTHERS, Checked, Count, Finite, Level, Positive, Range, Share, annotations, outside, refused

CONF = Path(__file__).parents[2] / "conf"
SCHEMAS = {schema.__name__: schema for schema in (TrainSchema, SampleSchema, EvaluateSchema)}


def nodes(value) -> list[dict]:
    """Every mapping of a file that names what it builds."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return ([value] if isinstance(value, dict) and "_target_" in value else []) + [node for v in inner for node in nodes(v)]


NODES = [node for file in sorted(CONF.rglob("*.yaml")) for node in nodes(yaml.safe_load(file.read_text())) if node["_target_"] != "???"]
TARGETS = sorted({node["_target_"] for node in NODES})
OURS = [target for target in TARGETS if target.startswith("diffusion.")]


def declared(annotation, parents=()) -> list[tuple[object, Range | None, int]]:
    """(int or float, its range or None, how many lists it is in) of each number in an annotation."""
    inside = typing.get_args(annotation)
    if typing.get_origin(annotation) is Annotated:
        return [(inside[0], next(said for said in inside[1:] if isinstance(said, Range)), len(parents))]
    if annotation in (int, float):
        return [(annotation, None, len(parents))]
    listed = typing.get_origin(annotation) not in (typing.Union, type(int | str))
    return [number for a in inside for number in declared(a, (*parents, annotation) if listed else parents)]


def numbers(target: str) -> list[tuple[str, object, Range | None, int]]:
    """(parameter, int or float, range, depth) of each number that a class takes from a configuration; not of functions that it takes."""
    taken = annotations(locate(target), signature(locate(target)).parameters)
    plain = {name: a for name, a in taken.items() if "Callable" not in str(a) and a is not Parameter.empty}
    return [(name, *number) for name, a in plain.items() for number in declared(a)]


def beyond(kind, limits: Range) -> list[float]:
    """Numbers just outside of a range, and those that are in few."""
    ends = [limits.least - 1, limits.most + 1] if kind is int else [nextafter(limits.least, -inf), nextafter(limits.most, inf)]
    ends += [limits.above, limits.below]
    return [kind(end) for end in ends if isfinite(end)] + ([nan] + [inf, -inf] * (not limits.endless) if kind is float else [])


@pytest.mark.parametrize("target", OURS)
def test_every_number_of_a_configuration_declares_its_range(target):
    """A bare int or float in a signature fails here; `Finite` says that any number will do."""
    assert [name for name, _, limits, _ in numbers(target) if limits is None] == []


def test_numbers_of_other_packages_have_ranges_too():
    for node in NODES:
        if node["_target_"].startswith(("diffusion.", "hydra_plugins.diffusion_")):
            continue
        said = next(ranges for package, ranges in OTHERS.items() if node["_target_"].startswith(package))
        for key, value in node.items():
            first = value[0] if isinstance(value, list) else value
            assert key in said or isinstance(first, bool | str) or first is None, f"{node['_target_']}: {key}"


@pytest.mark.parametrize("target", OURS)
def test_what_is_outside_of_a_declared_range_is_refused_with_its_key(target):
    for name, kind, limits, depth in numbers(target):
        for bad in beyond(kind, limits):
            place = f"group.{name}" + "[0]" * depth
            with pytest.raises(ValueError, match=rf"^{re.escape(place)}={re.escape(str(bad))} (must be|should be of type) .*\.$"):
                build({"_target_": target, name: listed(bad, depth, locate(target), name)}, "group")


def listed(bad, depth, kind, name):
    """[bad], as long as the annotation says."""
    if not depth:
        return bad
    pair = "tuple[" in str(signature(kind).parameters[name].annotation)
    return [bad, bad] if pair else [bad]


@pytest.mark.parametrize("target", OURS)
def test_defaults_are_in_their_ranges(target):
    for name, p in signature(locate(target)).parameters.items():
        if p.default is not p.empty:
            assert outside(p.default, p.annotation) is None, name


@pytest.mark.parametrize("schema", SCHEMAS)
def test_what_is_outside_of_a_plain_key_s_range_is_refused(schema):
    tried = 0
    for field in fields(SCHEMAS[schema]):
        for kind, limits, depth in declared(field.type):
            assert limits is not None, f"{field.name} declares no range"
            for bad in beyond(kind, limits):
                tried += 1
                with pytest.raises(UserError, match=rf"^{field.name}(\[0\])?={re.escape(str(bad))} must be "):
                    known(OmegaConf.create({field.name: [bad, bad] if depth else bad}), SCHEMAS[schema])
    assert tried > 5


def test_a_schema_without_ranges_is_one_that_hydra_reads():
    plain = OmegaConf.structured(bare(SampleSchema))
    plain.between, plain.height = [3, 8], None
    assert list(plain.between) == [3, 8] and {f.name for f in fields(bare(TrainSchema))} == {f.name for f in fields(TrainSchema)}


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"lr": -1.0}, "optimizer.lr=-1.0 must be above 0"),
        ({"lr": nan}, "optimizer.lr=nan must be above 0"),
        ({"lr": "banana"}, "optimizer.lr=banana should be of type float"),
        ({"betas": [0.9]}, r"optimizer.betas=\[0.9\] should be of type \[float, float\]"),
        ({"betas": [0.9, 1.0]}, r"optimizer.betas\[1\]=1.0 must be at least 0 and below 1"),
        ({"weight_decay": -0.1}, "optimizer.weight_decay=-0.1 must be at least 0"),
    ],
)
def test_an_optimizer_s_numbers_have_ranges(settings, said):
    with pytest.raises(ValueError, match=rf"^{said}\.$"):
        build({"_target_": "torch.optim.AdamW", "_partial_": True, "lr": 1e-3} | settings, "optimizer")


def test_an_object_made_in_python_is_checked_too():
    for made in (lambda: DDIM(nan), lambda: DDIM(eta=2), lambda: replace(Heun(), s_churn=-1), lambda: Heun(s_max=nan)):
        with pytest.raises(ValueError, match=r"of (DDIM|Heun) must be "):
            made()
    assert DDIM(np.float32(0.5)).eta == 0.5


@dataclass(frozen=True)
class Thing(Checked):
    """Of any package: what build does not make is checked by its base."""

    many: list[Positive] | Count = 1
    level: Level = inf
    share: Share | None = None
    undeclared: float = inf


def test_lists_unions_and_infinity():
    Thing([0.1, 2]), Thing(3, 0.0, None), Thing((1.0,))
    for given, said in (
        (([1.0, 0.0],), r"many\[1\]=0.0"),
        ((0,), "many=0"),
        ((1, -1.0), "level=-1.0"),
        ((1, nan), "level=nan"),
        ((1, 1.0, 1.5), "share=1.5"),
        ((1, 1.0, 0.5, nan), "undeclared=nan of Thing must be a number"),
    ):
        with pytest.raises(ValueError, match=said):
            Thing(*given)
    assert refused(inf, Finite) == "=inf must be finite" and refused(True, Count) == "=True should be of type int"
    assert refused(2, Share | None) == "=2 must be between 0 and 1, or null"
