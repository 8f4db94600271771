"""The config group `metric`."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import OmegaConf

from diffusion.errors import UserError

CONF = Path(__file__).parents[2] / "conf"
WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "resnet_cifar10" / "resnet56-4bfd9763.th"


def configured(tmp_path, choice):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+{choice}"])
    OmegaConf.set_struct(config, False)
    config.paths = {"cache": str(tmp_path)}
    return config.metric


def test_fd_digits(tmp_path):
    config = configured(tmp_path, "metric=fd_digits")
    config.n = 250
    metric = instantiate(config, _convert_="all")
    assert metric.name == "fd-digits@250"
    assert list(tmp_path.glob("extractors/*.pt"))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no ResNet-56 here")
def test_fd_resnet56(tmp_path):
    config = configured(tmp_path, "metric=fd_resnet56")
    config.weights = str(WEIGHTS)
    assert instantiate(config, _convert_="all").name == "fd-resnet56@5k"


@pytest.mark.parametrize("group", ["fd_resnet56", "fid"])
def test_a_missing_file_is_said_at_once(tmp_path, group):
    config = configured(tmp_path, f"metric={group}")
    config.weights = str(tmp_path / "absent")
    with pytest.raises(InstantiationException) as caught:
        instantiate(config, _convert_="all")
    assert isinstance(caught.value.__cause__, UserError)
    assert "metric.weights=PATH" in str(caught.value.__cause__)


def test_none(tmp_path):
    assert not instantiate(configured(tmp_path, "metric=none"), _convert_="all")
