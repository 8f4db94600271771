"""A list of stages: each stage's settings are its own, whatever stands beside it; and what a short form may mean."""

from functools import partial

import pytest
import torch
from composing import ROOT, composed, composition, way
from hydra import compose, initialize_config_dir
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from diffusion.codecs import Pixels, Standardised
from diffusion.conditions import Unconditional
from diffusion.config import own
from diffusion.grids import Trailing
from diffusion.guidance import Clip
from diffusion.model import Model
from diffusion.oracles import GaussianMixture
from diffusion.samplers import DDIM
from diffusion.support.errors import UserError

WORDS = {group: [f.stem for f in sorted((ROOT / "conf" / group).glob("*.yaml")) if f.stem != "none"] for group in ("metric", "guidance")}


@pytest.fixture(scope="module")
def alone():
    """`alone(group, *words)`: what Hydra makes of a list of this group's words, in a configuration of nothing else, not resolved."""
    GlobalHydra.instance().clear()
    store = ConfigStore.instance()
    for group in WORDS:
        store.store(f"only_{group}", {"defaults": ["_self_", {group: "none"}], group: {}})
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        yield lambda group, *words: OmegaConf.to_container(compose(f"only_{group}", [f"{group}=[{','.join(words)}]"])[group])
    for group in WORDS:
        store.repo.pop(f"only_{group}.yaml")


@pytest.mark.parametrize("group", WORDS)
def test_a_stage_s_settings_do_not_depend_on_its_place(alone, group):
    """Every word's file says its own stage alone, so that the whole list in both orders, in which every pair stands in both, has each stage
    as it is alone; the stages stand in the order of the words."""
    single = {word: alone(group, word) for word in WORDS[group]}
    assert all(isinstance(stage, dict) for stages in single.values() for stage in stages.values())  # nothing stands beside the stages
    words = [word for word in WORDS[group] if word != "fid_if_available"]  # which is fid's stage, said to be optional
    assert [list(single[word]) for word in words] == [[word] for word in words]
    for order in (words, words[::-1]):
        both = alone(group, *order)
        assert list(both) == order and both == {word: single[word][word] for word in words}


@pytest.mark.parametrize("group", WORDS)
def test_the_whole_list_in_both_orders(group):
    """As the command composes it."""
    words = [word for word in WORDS[group] if word not in ("fid_if_available", "custom")]
    there, back = (composed(f"{group}=[{','.join(order)}]")[group] for order in (words, words[::-1]))
    assert there == back and list(there) == words and list(back) == words[::-1]


def test_a_short_form_reaches_all_that_have_the_setting():
    every = [word for word in WORDS["metric"] if word not in ("fid_if_available", "custom")]
    stages = composed(f"metric=[{','.join(every)}]", "metric.n=7", "metric.kid.n=9")["metric"]
    before = composed(f"metric=[{','.join(every)}]")["metric"]
    for name, stage in stages.items():
        assert stage == before[name] | ({"n": 9 if name == "kid" else 7} if "n" in before[name] else {})
    assert len([stage for stage in stages.values() if "n" in stage]) == len(stages) - 2  # the two likelihoods make no images


def test_a_short_form_keeps_the_run_s_other_settings():
    run = composed("guidance=[cfg,interval,clip]", "guidance.scale=3", "metric=[fd_digits,kid]", "metric.n=50")
    assert run["guidance"]["cfg"]["scale"] == 3
    changed = way(run, "guidance.scale=2", "metric.n=60", "metric.kid.subsets=4", name="evaluate")
    assert changed["guidance"] == run["guidance"] | {"cfg": run["guidance"]["cfg"] | {"scale": 2}}
    assert [stage["n"] for stage in changed["metric"].values()] == [60, 60] and changed["metric"]["kid"]["subsets"] == 4
    assert changed["sampler"] == run["sampler"] and changed["grid"] == run["grid"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["guidance=[cfg,classifier]", "guidance.scale=2"], ["guidance.cfg.scale", "guidance.classifier.scale", "say which"]),
        (
            ["metric=[fd_digits,fd_resnet56]", "metric.weights=x"],
            ["metric.fd_digits.extractor.weights", "metric.fd_resnet56.extractor.weights", "say which"],
        ),
        (["guidance=[clip]", "guidance.scale=2"], ["guidance.scale is a setting of none", "clip"]),
        (["metric=nll_vlb", "metric.n=9"], ["metric.n is a setting of none", "nll_vlb"]),
        (["metric=none", "metric.n=9"], ["metric.n is a setting of none", "none."]),
    ],
    ids=["two scales", "two extractors", "no scale", "no images", "no metric"],
)
def test_a_short_form_that_is_not_clear_is_refused(words, said):
    with pytest.raises(UserError) as caught:
        composed(*words)
    assert all(part in str(caught.value) for part in said) and "\n" not in str(caught.value)


def test_what_is_said_of_a_stage_itself_settles_it():
    guidance = composed("guidance=[cfg,classifier]", "guidance.cfg.scale=2", "guidance.ckpt=runs/x")["guidance"]
    assert guidance["cfg"]["scale"] == 2 and guidance["classifier"]["scale"] == 1
    assert guidance["classifier"]["classifier"]["ckpt"] == "runs/x"
    both = composed("metric=[fid,kid]", "metric.weights=x")["metric"]  # one network, told once
    assert both["fid"]["extractor"]["weights"] == both["kid"]["extractor"]["weights"] == "x"


def test_what_a_file_says_beside_stages_reaches_no_stage():
    """A short form in a run's config.yaml was not typed: it may name any class, and is not taken."""
    run = composed() | {"metric": {"kid": {"_target_": "diffusion.metrics.KernelDistance", "extractor": {}}, "extractor": "os.system"}}
    run["guidance"] = {"autoguidance": {"_target_": "x", "bad": {"_target_": "y"}}, "bad": "os.system"}
    found = own(run, composition("ckpt=x", name="evaluate"), {})
    assert found["metric"] == {"kid": {"_target_": "diffusion.metrics.KernelDistance", "extractor": {}}}
    assert found["guidance"] == {"autoguidance": {"_target_": "x", "bad": {"_target_": "y"}}}


def test_a_codec_s_range_reaches_what_clips_and_nothing_else():
    interval = {"_target_": "diffusion.guidance.Interval"}
    clip = {"_target_": "diffusion.guidance.Clip"}
    model = Model(GaussianMixture(torch.zeros(1, 1, 8, 8), torch.ones(1)), Pixels((8, 8, 1), 0.0, 1.0), Unconditional())
    recipe = model.recipe(DDIM(), Trailing(3), {"interval": interval, "clip": clip})
    assert (recipe.denoiser.low, recipe.denoiser.high) == (0.0, 1.0)
    assert (recipe.denoiser.denoiser.low, recipe.denoiser.denoiser.high) == (0.0, float("inf"))
    for stage, high in ((Clip, 1.0), (partial(Clip, high=2.0), 2.0)):
        assert model.recipe(DDIM(), Trailing(3), [stage]).denoiser.high == high
    with pytest.raises(ValueError, match="Clip needs a range"):
        Model(model.denoiser, Standardised((8, 8, 1), [0.0], [1.0]), Unconditional()).recipe(DDIM(), Trailing(3), [Clip])
