"""The configuration says each thing once; a group of one's own is a word; and what is no key is refused."""

import re

import pytest
from composing import ROOT, SCHEMAS, composed, composition, typed

from diffusion.config import known, plain
from diffusion.support.build import build, build_stages
from diffusion.support.errors import UserError

CONF = ROOT / "conf"
FILES = sorted(CONF.rglob("*.yaml"))
GROUPS = sorted({file.parent.name for file in FILES if file.parent != CONF})
TOLD = {"in_channels", "out_channels", "image_size", "num_classes"}  # to a network when it is built


def objects(node, path=""):
    """(path, mapping) of everything that is built."""
    if isinstance(node, dict):
        if "_target_" in node:
            yield path, node
        for key, value in node.items():
            yield from objects(value, f"{path}.{key}".lstrip("."))


@pytest.mark.parametrize(
    "words",
    [[], ["task=classifier"], ["dataset=cifar10", "metric=[fid,kid]"], ["dataset=two_moons"], ["experiment=edm2_digits"]],
    ids=" ".join,
)
def test_no_group_stands_twice(words):
    """What a group holds is at the group's own key alone; metrics of one kind of network each name it."""
    config = composed(*words)
    groups = [config[group] for group in GROUPS if isinstance(config.get(group), dict) and "_target_" in config[group]]
    assert len(groups) > 10 and "denoiser" not in config
    places = [(path, node) for path, node in objects(config) if not path.endswith(".extractor")]
    for i, (path, node) in enumerate(places):
        assert [other for other, same in places[i + 1 :] if same == node] == [], path


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(CONF).as_posix())
def test_no_file_refers_to_a_group(file):
    """A reference is to a plain value; `${paths.cache}` is one, `${network}` and `${network.channels}` are not. Hydra's own nodes are told
    what its launchers and sweepers are."""
    text = "\n".join(line.partition("#")[0] for line in file.read_text().splitlines())
    referred = {name.split(".")[0] for name in re.findall(r"\$\{\.*([\w.]+)\}", text)}
    assert referred & {group for group in GROUPS if group not in ("paths", "launcher", "sweeper")} == set()


@pytest.mark.parametrize("file", sorted(CONF.glob("network/*.yaml")), ids=lambda file: file.stem)
def test_no_network_says_what_it_is_told(file):
    assert {line.partition(":")[0] for line in file.read_text().splitlines()} & TOLD == set()


class Mine:
    """In the place of any object: what it was given."""

    def __init__(self, width: int, **given):
        self.width, self.given = width, given


def mine(group):
    """Where the class of a group's custom.yaml is named: the group, or for a list of stages the stage."""
    return f"{group}.custom" if group in ("metric", "guidance", "logger") else group


@pytest.mark.parametrize("group", sorted(file.parent.name for file in CONF.glob("*/custom.yaml")))
def test_a_class_from_outside_is_a_word(group):
    def made(*words):
        content = plain(composition(f"{group}=custom", *words), typed(*words))[group]
        return build_stages(content, group)["custom"] if group in ("metric", "guidance", "logger") else build(content, group)

    with pytest.raises(ValueError, match=rf"is to be a class of yours, and none is named: add {re.escape(mine(group))}\._target_=package"):
        made()
    built = made(f"{mine(group)}._target_={__name__}.Mine", f"+{mine(group)}.width=3")
    built = built() if not isinstance(built, Mine) else built  # an optimizer is a partial
    assert isinstance(built, Mine) and built.width == 3
    with pytest.raises(ValueError, match=r"_target_=nowhere\.Mine cannot be imported"):
        made(f"{mine(group)}._target_=nowhere.Mine")


@pytest.mark.parametrize("name", SCHEMAS)
def test_an_added_key_that_no_command_knows_is_refused(name):
    with pytest.raises(UserError, match=r"^stepz is not a key of this command; its keys are .*seed.*\.$"):
        known(composition("+stepz=1", *([] if name == "train" else ["ckpt=x"]), name=name), SCHEMAS[name])


def test_an_added_key_of_an_open_object_is_passed_on():
    assert composed("+trainer.enable_model_summary=true", "+trainer.limit_val_batches=0")["trainer"]["limit_val_batches"] == 0
