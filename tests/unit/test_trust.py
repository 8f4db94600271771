"""What a run's files may build: all that this repository publishes, and nothing that runs or reads code."""

import json
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
import torchvision
import yaml
from composing import ROOT, composed
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import diffusion.metrics.extractors.foreign as foreign
from diffusion.config import register, settled
from diffusion.support import trust as under_test
from diffusion.support.build import build
from diffusion.support.errors import UserError
from diffusion.support.trust import parsed, vet, vet_source

CONF = ROOT / "conf"
CHOICES = [(f.parent.name, f.stem) for f in sorted(CONF.glob("*/*.yaml")) if f.parent.name != "hydra"]
COMMANDS = {"edit": "sample", "sweep": "evaluate"}  # groups of another command than train
FUNCTION, TORCHSCRIPT = "diffusion.metrics.Function", "diffusion.metrics.TorchScript"


def refusal(config, trust=()) -> str:
    with pytest.raises(UserError) as caught:
        vet(config, trust, "runs/x/config.yaml")
    said = str(caught.value)
    assert said.startswith("runs/x/config.yaml") and said.endswith(("?", ".")) and "\n" not in said and len(said) < 900
    return said


@pytest.mark.parametrize("group, choice", CHOICES, ids=[f"{g}={c}" for g, c in CHOICES])
def test_what_is_published_passes(group, choice):
    """Composed as source.yaml is, with one key referring to another, and resolved as config.yaml is."""
    command = COMMANDS.get(group, "train")
    register()
    GlobalHydra.instance().clear()
    with initialize_config_dir(str(CONF), version_base="1.3"):
        cfg = compose(command, [*([] if command == "train" else ["ckpt=x"]), f"{group}={choice}"])
        vet_source({key: value for key, value in settled(OmegaConf.to_container(cfg)).items() if key not in ("launcher", "sweeper")})
        if command == "train":  # the name of a run and its loggers ask where the running command writes
            if (group, choice) != ("logger", "custom"):
                vet(OmegaConf.to_container(cfg.logger))
            cfg.name, cfg.logger = "test", {}
        config = OmegaConf.to_container(cfg, resolve=True)
    if choice == "custom":
        assert group == "logger" or "is not the name of a class" in refusal(config)  # "???"
        config = composed("network=custom", "network._target_=my_package.MyNetwork")
        assert "trust=my_package." in refusal(config)
        return vet(config, "my_package")
    vet(config)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.Conv2d",
        "torch.optim.SGD",
        "torchvision.transforms.Compose",
        "torchvision.transforms.v2.Resize",
        "pytorch_lightning.loggers.CSVLogger",
        "diffusion.checkpoint.denoiser",
        "diffusion.classifier.of_unet",
        "diffusion.networks.unet.UNet",
    ],
)
def test_what_else_is_built(target):
    vet({"a": [{"_target_": target, "_partial_": True}]})


HOSTILE = """
os.system posix.system subprocess.run subprocess.Popen builtins.eval builtins.exec eval torch.load torch.hub.load torch.jit.load
torch.utils.cpp_extension.load torch.utils.model_zoo.load_url torch.serialization.load torch.nn.functional.relu torch.nn.init
torch.nn.Tensor torch.nn.modules.module.torch torch.nn.utils.parametrize.cached torch.optim.lr_scheduler.LambdaLR torch.optim.Optional
torch.nn.importlib torchvision.transforms.functional.F torchvision.datasets.ImageFolder torchvision.io.read_file numpy.load
numpy.f2py.compile runpy.run_path runpy.run_module importlib.import_module pickle.loads pickle.Unpickler webbrowser.open
functools.partial operator.attrgetter diffusion.support.build.import_module diffusion.support.build.locate
diffusion.support.build.build diffusion.support.build.partial diffusion.passport.subprocess
diffusion.passport.subprocess.run diffusion.passport.Path diffusion.evaluate.main diffusion.metrics.cache.pickle.loads
diffusion.metrics.extractors.foreign.torch.load diffusion.dashboard.__main__.main diffusion.config.register
diffusion.denoiser.Denoiser.load_state_dict diffusion.denoiser.Denoiser.__init__ diffusion.denoiser.torch
diffusion.denoiser.__builtins__ diffusion.nowhere.Thing diffusion.denoiser.Nothing diffusion diffusion. diffusion..x .diffusion.x
diffusion.support..errors.UserError diffusionx.Thing diffusion_evil.Thing pytorch_lightning.utilities.migration.utils.torch
pytorch_lightning.cli.instantiate_class pytorch_lightning.trainer.Trainer pytorch_lightning.loggers.logger.rank_zero_only
hydra.utils.get_method hydra.utils.instantiate my_package.Thing ??? . .. os
"""


@pytest.mark.parametrize("target", HOSTILE.split())
def test_code_from_elsewhere_is_refused(target):
    node = {"_target_": target}
    for config in (node, node | {"_partial_": True}, {"task": {"denoiser": node}}, {"a": [{"_target_": "torch.nn.ReLU", "b": [node]}]}):
        said = refusal(config)
        assert f"_target_={target!r}" in said and not said.startswith("runs/x/config.yaml: .")


def test_what_is_no_name_is_refused():
    cyrillic = "d\u0456ffusion.denoiser.Denoiser"
    for target in ("", " ", "os.system\n", cyrillic, 3, 10**5000, None, True, ["os.system"], {"a": 1}, b"os.system", "a." * 9999):
        assert "is not the name of a class" in refusal({"task": {"_target_": target}})


def test_the_message_names_the_key_the_target_and_the_remedy():
    said = refusal({"callbacks": [{"_target_": "diffusion.training.callbacks.Losses"}, {"with": {"_target_": "evil.Thing"}}]})
    assert said == (
        "runs/x/config.yaml: callbacks[1].with._target_='evil.Thing' is not among the classes that a run's file may build; "
        "if the code is yours, or you have read it, say trust=evil."
    )
    assert "trust=os" not in refusal({"_target_": "os.system"})


def test_trust_is_by_whole_parts():
    node = {"_target_": "my_package.sub.Thing"}
    for given in ("my_package", ["other", "my_package"], ["my_package.sub"], ("my_package.sub.Thing",)):
        vet(node, given)
    for given in ("my", ["my_pack"], ["my_package.su"], ["my_package.sub.Thing.x"], ["sub"], None, ()):
        refusal(node, given)
    for given in ("", [""], ["."], ["my_package."], [3], ["my_package", "*"]):
        with pytest.raises(UserError, match=r"^trust=.* is not the name of a package; say trust=my_package"):
            vet(node, given)


def test_extractors_that_run_code_need_trust():
    for target in (FUNCTION, "diffusion.metrics.extractors.Function", under_test.FUNCTION, "diffusion.metrics.extractors.foreign.Function"):
        node = {"metric": {"extractor": {"_target_": target, "weights": "my_package.nets:features"}}}
        assert "metric.extractor.weights='my_package.nets:features'" in refusal(node)
        assert "say trust=my_package." in refusal(node, "torchscript")
        vet(node, "my_package"), vet(node, "my_package.nets")
    for weights in (None, 3, ["os:system"], "os", ":system", "os:", {"_target_": "torch.nn.ReLU"}):
        assert "names no function" in refusal({"_target_": FUNCTION, "weights": weights}, "my_package")
    assert "my_package.nets" not in sys.modules
    script = {"_target_": TORCHSCRIPT, "weights": "net.pt"}
    assert "say trust=torchscript." in refusal(script, "my_package")
    vet(script, ["torchscript"])
    assert {foreign.Function, foreign.TorchScript} == {build_class(under_test.FUNCTION), build_class(under_test.TORCHSCRIPT)}


def build_class(target: str) -> type:
    return build({"_target_": target, "_partial_": True}).func


def test_wandb_settings_are_refused():
    node = {"_target_": "pytorch_lightning.loggers.WandbLogger", "settings": {"base_url": "https://elsewhere"}}
    assert "settings" in refusal(node)


def test_all_that_is_let_through_of_other_packages_is_a_class_of_theirs():
    """By the rule itself over whole namespaces: what passes is a class defined there, so that nothing else was re-exported by chance."""
    for name, module in {"torch": torch, "torch.nn": torch.nn, "torch.optim": torch.optim, "torchvision": torchvision}.items():
        for attribute, value in vars(module).items():
            try:
                vet({"_target_": f"{name}.{attribute}"})
            except UserError:
                continue
            assert isinstance(value, type) and value.__module__.startswith(name) and name in under_test.NAMESPACES


def test_nothing_from_outside_is_imported(tmp_path):
    """In a fresh process with a package on its path that says when it is imported."""
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/__init__.py").write_text("raise SystemExit('imported')")
    program = f"""
import json, sys
sys.path.insert(0, {str(tmp_path)!r})
from diffusion.support.errors import UserError
from diffusion.support.trust import vet
refused = 0
for target in json.loads(sys.argv[1]):
    for node in ({{"_target_": target}}, {{"_target_": {FUNCTION!r}, "weights": target.replace(".", ":")}}):
        try:
            vet(node)
        except UserError:
            refused += 1
vet({{"_target_": "evil.Thing"}}, "evil")
others = ("evil", "antigravity", "diffusion.dashboard.__main__", "torch.utils.cpp_extension")
print(json.dumps([refused, *(name in sys.modules for name in others)]))
"""
    outside = ["evil.Thing", "evil.sub.Thing", "antigravity.geohash", "diffusion.dashboard.__main__.main", "torch.utils.cpp_extension.load"]
    done = subprocess.run([sys.executable, "-c", program, json.dumps(outside)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == [10, False, False, False, False]


def nested(depth: int, kind=list):
    node = inner = kind()
    for _ in range(depth):
        further = kind()
        inner.append(further) if kind is list else inner.update(a=further)
        inner = further
    return node


def bomb(levels: int) -> list:
    node = ["x"] * 9
    for _ in range(levels):
        node = [node] * 9
    return node


def test_what_is_too_deep_or_too_large_is_a_sentence():
    itself = []
    itself.append(itself)
    for config in (nested(100_000), nested(100_000, dict), itself, {"_target_": nested(100_000)}):
        assert "deep" in refusal(config) or "not the name of a class" in refusal(config)
    for config in ([0] * 10**6, bomb(40), {"a": {str(i): 0 for i in range(10**6)}}):
        assert "holds more than" in refusal(config)
    assert "is a DictConfig, where plain data is needed" in refusal({"a": OmegaConf.create({"_target_": "os.system"})})
    vet(nested(50)), vet([0] * 50_000)


def test_texts_that_anyone_may_have_written():
    assert parsed("a: [1, {b: x}]") == {"a": [1, {"b": "x"}]} and parsed("") is None
    anchors = [f"b{i}: &b{i} [{', '.join([f'*b{i - 1}'] * 9) if i else 'x'}]" for i in range(20)]
    merges = "\n".join(["a0: &a0 {x: 1}", *(f"a{j}: &a{j} {{<<: [*a{i}, *a{i}]}}" for i, j in pairwise(range(40)))])
    for text, why in {
        "[" * 100_000: "deep",
        "a: " + "{b: " * 500 + "}" * 500: "deep",
        "\n".join(anchors): "has the alias",
        merges: "has the alias",
        "&a [*a]": "has the alias",
        "a: [1": "not a file of plain YAML",
        "a: !!python/object/apply:os.system [true]": "not a file of plain YAML",
        "a: 2024-13-45": "not a file of plain YAML",
        f"a: {'9' * 5000}": "not a file of plain YAML",
        "a: \x00": "not a file of plain YAML",
        "? [a]\n: 1": "not a file of plain YAML",
        "a: " + "x" * 3_000_000: "characters",
    }.items():
        for read in (parsed, vet_source):
            with pytest.raises(UserError, match=f"^F .*{why}"):
                read(text, "F")
    runs = {"a": {"_target_": "torch.optim.Adam", "lr": 1e-3}}
    assert parsed(yaml.safe_dump(runs)) == runs


@pytest.mark.parametrize(
    "value",
    [
        "${oc.env:HOME}",
        "${oc.env:HOME,nobody}",
        "x${ oc.env :HOME}",
        "${oc.decode:'${oc.env:HOME}'}",
        "${oc.create:x}",
        "${oc.deprecated:x}",
        "${oc.dict.values:x}",
        "${env:HOME}",
        "${basename:${oc.env:HOME}}",
        "${basename:'${oc.env:HOME}'}",
        "${oc.select:a,${oc.env:HOME}}",
        "${${a}:HOME}",
        "${a${b}:HOME}",
        "${a.${b}}",
        "${hydra:job.env_copy}",
        "${hydra:${a}}",
        "${hydra.job:x}",
        "${:x}",
        "${",
        "${a",
        "\\${oc.env:HOME}",
    ],
)
def test_a_source_reads_nothing_else(value):
    for source in ({"a": [{"b": value}]}, yaml.safe_dump({"a": [{"b": value}]}), f"a: [{{b: {json.dumps(value)}}}]"):
        with pytest.raises(UserError, match=r"^source.yaml: a\[0\].b asks for .* write its value in its place"):
            vet_source(source)
    with pytest.raises(UserError):
        vet_source('a: "\\x24{oc.env:HOME}"')  # a dollar written otherwise
    vet({"a": value})  # config.yaml is never resolved: there it is a word


@pytest.mark.parametrize(
    "value", ["${a.b}", "${..n}", "${...a[0].b}", "x-${name}-${seed}", "$5", "{a}", "${started:}", "${run_dir:${a.b},${name},${resume}}"]
)
def test_a_source_refers_to_itself(value):
    vet_source({"a": value})
