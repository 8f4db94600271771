"""From plain data to objects, and one sentence for each way it can fail."""

from dataclasses import dataclass, field
from functools import partial

import pytest
import torch

from diffusion.guidance import ClassifierFree
from diffusion.objectives import Hybrid
from diffusion.samplers import DDIM
from diffusion.schedules import VE, Cosine
from diffusion.support.build import build, build_stages, construct, locate, ways
from diffusion.support.errors import UserError

HERE = f"{__name__}."


@dataclass(frozen=True)
class Thing:
    count: int
    rate: float = 0.5
    name: str = "thing"
    flag: bool = False
    maybe: int | None = None
    either: int | str = 0
    parts: list = field(default_factory=list)
    inner: object = None


def anything(first, **rest):
    return first, rest


def thing(**settings) -> dict:
    return {"_target_": HERE + "Thing", **settings}


def test_nested_things_are_built():
    built = build(thing(count=2, inner=thing(count=3), parts=[thing(count=4), 5, {"a": thing(count=6)}]))
    assert built == Thing(2, inner=Thing(3), parts=[Thing(4), 5, {"a": Thing(6)}])
    assert build({"x": 1, "y": [None, "z"]}) == {"x": 1, "y": [None, "z"]} and build(7) == 7 and build(None) is None


def test_the_framework_s_own():
    assert build({"_target_": "diffusion.samplers.DDIM", "eta": 0.5}) == DDIM(0.5)
    assert build({"_target_": "diffusion.schedules.Cosine", "num_timesteps": 100, "zero_terminal_snr": True}) == Cosine(
        100, zero_terminal_snr=True
    )
    assert build({"_target_": "diffusion.objectives.Hybrid"}) == Hybrid(0.001)


def test_given_arguments_join_the_outermost():
    denoiser = object()
    assert build({"_target_": "diffusion.guidance.ClassifierFree", "scale": 2}, denoiser=denoiser) == ClassifierFree(denoiser, 2)


def test_partial():
    made = build({"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1})
    assert isinstance(made, partial) and made.func is torch.optim.SGD and made.keywords == {"lr": 0.1}
    assert made([torch.nn.Parameter(torch.zeros(1))]).defaults["lr"] == 0.1
    with pytest.raises(ValueError, match=r"optimizer\.lrr is not a setting of SGD, which has params, lr,"):
        build({"_target_": "torch.optim.SGD", "_partial_": True, "lrr": 0.1}, "optimizer")


def test_open_targets_take_any_key():
    assert build({"_target_": HERE + "anything", "first": 1, "other": 2}) == (1, {"other": 2})


def test_unknown_key_names_the_key_and_the_choices():
    with pytest.raises(ValueError, match=r"^sampler\.etta is not a setting of DDIM, which has eta; did you mean sampler\.eta\.$"):
        build({"_target_": "diffusion.samplers.DDIM", "etta": 1.0}, "sampler")
    with pytest.raises(ValueError, match=r"^etta is not a setting of DDIM"):
        build({"_target_": "diffusion.samplers.DDIM", "etta": 1.0})
    with pytest.raises(ValueError, match=r"^a\.inner\.parts\[1\]\.cuont is not a setting of Thing"):
        build(thing(count=1, inner=thing(count=1, parts=[0, thing(cuont=1)])), "a")


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("count", "ten", "int"),
        ("count", 1.5, "int"),
        ("count", True, "int"),
        ("count", None, "int"),
        ("rate", "fast", "float"),
        ("rate", True, "float"),
        ("name", 3, "str"),
        ("flag", 1, "bool"),
        ("flag", "true", "bool"),
        ("maybe", "none", "int"),
        ("either", 1.5, "int"),
        ("count", [1], "int"),
    ],
)
def test_wrong_types_are_named(key, value, kind):
    with pytest.raises(ValueError, match=rf"^top\.{key}=.* should be of type .*{kind}"):
        build(thing(**({"count": 1} | {key: value})), "top")


def test_right_types_pass():
    built = build(thing(count=1, rate=2, name="a", flag=True, maybe=None, either="b"))
    assert (built.rate, built.maybe, built.either) == (2, None, "b")
    assert build(thing(count=1, maybe=3, either=4)).maybe == 3
    assert build({"_target_": "diffusion.schedules.VE", "sigma_max": 80}).sigma_max == VE(sigma_max=80).sigma_max  # an int is a float


def test_what_the_command_gives_is_not_said_too():
    with pytest.raises(ValueError, match=r"^guidance\.cfg\.denoiser is given to ClassifierFree by the command itself; leave it out\.$"):
        build({"_target_": "diffusion.guidance.ClassifierFree", "denoiser": None}, "guidance.cfg", denoiser=len)


def test_a_number_is_no_object_of_a_protocol():
    with pytest.raises(ValueError, match=r"^g\.denoiser=-0\.5 should be of type Denoise"):
        build({"_target_": "diffusion.guidance.ClassifierFree", "denoiser": -0.5}, "g")


@pytest.mark.parametrize("settings", [1e300, "foo", [1], None])
def test_settings_are_a_mapping(settings):
    with pytest.raises(ValueError, match=r"^data=.* is not a mapping of settings, which are eta\.$"):
        construct(DDIM, settings, "data")


def test_missing_settings_are_named():
    with pytest.raises(ValueError, match=r"^Thing needs a\.count\.$"):
        build(thing(), "a")
    with pytest.raises(ValueError, match=r"^ClassifierFree needs denoiser\.$"):
        build({"_target_": "diffusion.guidance.ClassifierFree"})
    with pytest.raises(ValueError, match=r"^Denoiser needs d\.network and d\.schedule and d\.parameterization\.$"):
        build({"_target_": "diffusion.denoiser.Denoiser"}, "d")


@pytest.mark.parametrize("target", ["diffusion.samplers.DDMI", "diffusion.sampelrs.DDIM", "nowhere", "", "no.such.thing", "../x"])
def test_bad_targets_are_named(target):
    with pytest.raises(ValueError, match=rf"^_target_={target} cannot be imported"):
        build({"_target_": target})


@pytest.mark.parametrize("samplers", ["foo", 3, ["a"]])
def test_ways_that_are_none_are_named(samplers):
    with pytest.raises(UserError, match=r"^samplers=.* names no ways to sample: say \+samplers\.NAME\.grid\.steps=10, "):
        ways({"sampler": {}, "grid": {}, "guidance": {}, "samplers": samplers})


@pytest.mark.parametrize("target", [3, 1e11, None, True, ["diffusion.schedules.Cosine"], {"a": 1}])
def test_a_target_that_is_no_word_is_named(target):
    with pytest.raises(ValueError, match=r"^_target_=.* is not the name of a class; write it as package\.Class\.$"):
        build({"_target_": target}, "schedule")


def test_a_target_s_own_refusal_passes_through():
    with pytest.raises(ValueError, match="VESDE needs 0 < sigma_min < sigma_max"):
        build({"_target_": "diffusion.schedules.VESDE", "sigma_min": 3, "sigma_max": 2})


def test_locate():
    assert locate("diffusion.samplers.DDIM") is DDIM


def test_stages_are_the_mappings_among_the_values():
    assert build_stages({"one": thing(count=1), "none": None, "two": thing(count=2)}) == {"one": Thing(1), "two": Thing(2)}
    for stray in (5, "word", False, [1], {"every": 5}):
        with pytest.raises(ValueError, match=r"^callbacks\.stray is not one of callbacks's stages"):
            build_stages({"one": thing(count=1), "stray": stray}, "callbacks")
    assert build_stages(None) == {} == build_stages({})
    with pytest.raises(ValueError, match=r"^callbacks\.one\.cuont is not"):
        build_stages({"one": thing(cuont=1)}, "callbacks")
