"""The config group `metric`."""

from pathlib import Path

import pytest
from composing import composed

from diffusion.support.build import build_stages
from diffusion.support.errors import UserError

WEIGHTS = Path(__file__).parents[3] / "shared" / "data" / "resnet_cifar10" / "resnet56-4bfd9763.th"


def configured(tmp_path, *overrides):
    return composed(*overrides, f"paths.cache={tmp_path}")["metric"]


def test_fd_digits(tmp_path):
    (metric,) = build_stages(configured(tmp_path, "metric=fd_digits", "metric.n=250")).values()
    assert metric.name == "fd-digits@250"
    assert list(tmp_path.glob("extractors/*.pt"))


@pytest.mark.skipif(not WEIGHTS.exists(), reason="no ResNet-56 here")
def test_fd_resnet56(tmp_path):
    (metric,) = build_stages(configured(tmp_path, "metric=fd_resnet56", f"metric.weights={WEIGHTS}")).values()
    assert metric.name == "fd-resnet56@5k"


@pytest.mark.parametrize("group", ["fd_resnet56", "fid"])
def test_a_missing_file_is_said_at_once(tmp_path, group):
    config = configured(tmp_path, f"metric={group}", f"metric.weights={tmp_path / 'absent'}")
    with pytest.raises(UserError, match=r"metric\.weights=PATH"):
        build_stages(config)


def test_only_a_metric_that_is_optional_may_be_missing(tmp_path, caplog):
    absent = f"metric.weights={tmp_path / 'absent'}"
    assert build_stages(configured(tmp_path, "metric=fid_if_available", absent), "metric") == {}
    assert "metric.fid is left out" in caplog.text and "metric.weights=PATH" in caplog.text
    with pytest.raises(UserError, match=r"metric\.weights=PATH"):
        build_stages(configured(tmp_path, "metric=fid", absent), "metric")
    both = build_stages(configured(tmp_path, "metric=[fd_digits,fid_if_available]", f"metric.fid.extractor.weights={tmp_path / 'absent'}"))
    assert list(both) == ["fd_digits"]


def test_none(tmp_path):
    assert build_stages(configured(tmp_path, "metric=none")) == {}
