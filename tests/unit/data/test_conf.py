"""conf/dataset: each file builds its data set, and says what the class says."""

from dataclasses import fields
from pathlib import Path

import pytest
from composing import composed

from diffusion.support.build import build

CONF = Path(__file__).parents[3] / "conf" / "dataset"
FILES = sorted(file for file in CONF.glob("*.yaml") if file.stem != "custom")  # which names a class of the user's


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_builds_its_data_set(file):
    config = composed(f"dataset={file.stem}", "paths.data=somewhere", "paths.cache=there")["dataset"]
    dataset = build(config)
    assert dataset.name == file.stem and str(dataset.cache) == "there"
    assert set(config) - {"_target_"} == {field.name for field in fields(dataset)}
    for field in fields(dataset):
        if field.name not in ("root", "cache"):
            assert getattr(dataset, field.name) == field.default


def test_every_set_is_there():
    sets = {
        "captioned_digits",
        "captioned_fashion",
        "digits",
        "mnist",
        "fashion_mnist",
        "cifar10",
        "cifar100",
        "image_folder",
        "synthetic",
        "two_moons",
    }
    assert sets <= {file.stem for file in FILES}
