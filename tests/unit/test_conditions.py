"""What a model is asked for: by an image's number, in the data's proportions, and by words."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.conditions import Classes, Unconditional
from diffusion.support.errors import UserError


def test_classes_in_turn():
    classes = Classes(3)
    assert classes.ask(torch.arange(7)).tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert (classes.period, classes.given, classes.network(), classes.describe()) == (3, True, {"num_classes": 3}, None)


def test_classes_at_random_are_a_function_of_the_number():
    """As often as the weights say, within five standard errors; the same for an image whatever stands beside it; and in the passport."""
    weights, n = [0.5, 0.0, 0.3, 0.2], 20_000
    classes = Classes(4, [10 * w for w in weights])
    drawn = classes.ask(torch.arange(n))
    counts = torch.bincount(drawn, minlength=4)
    assert counts[1] == 0
    for count, w in zip(counts.tolist(), weights, strict=True):
        assert abs(count / n - w) <= 5 * (w * (1 - w) / n) ** 0.5
    some = torch.tensor([17, 3, 19_999])
    assert torch.equal(classes.ask(some), drawn[some])
    assert classes.period == 1 and classes.describe()["frequencies"] == [5.0, 0.0, 3.0, 2.0]


def test_the_frequencies_of_the_data():
    data = SimpleNamespace(name="three", num_classes=3, labels=np.array([0, 0, 2, 2, 2, 2, 1, 0]))
    assert Classes(frequencies="data").facts(data) == {"num_classes": 3, "frequencies": [0.375, 0.125, 0.5]}
    assert Classes().facts(data) == {"num_classes": 3}


def test_another_number_of_classes_than_the_data_s_is_refused():
    with pytest.raises(UserError, match=r"conditions\.num_classes=4, and three has 3"):
        Classes(4).facts(SimpleNamespace(name="three", num_classes=3, labels=None))


@pytest.mark.parametrize("conditions", [Unconditional(), Classes(0)], ids=repr)
def test_nothing_to_ask_for(conditions):
    labels = torch.tensor([1, 2])
    assert conditions.ask(labels) is None and conditions.of(labels) is None
    assert (conditions.given, conditions.period, conditions.network()) == (False, 1, {"num_classes": 0})
    with pytest.raises(UserError, match="without a condition, so 3 cannot"):
        conditions.parse(3)


@pytest.mark.parametrize("words, classes", [(3, [3]), ("3", [3]), ([0, 9], [0, 9]), (["1", 2], [1, 2])])
def test_words(words, classes):
    assert Classes(10).parse(words).tolist() == classes


@pytest.mark.parametrize("words", [10, -1, "cat", [1, 10], 1.5])
def test_words_that_are_no_class(words):
    with pytest.raises(UserError, match="numbers 0 to 9"):
        Classes(10).parse(words)


@pytest.mark.parametrize("frequencies", ["often", [1.0], [0.0, 0.0], [1.0, -1.0], [1.0, float("inf")]], ids=str)
def test_weights_that_are_none(frequencies):
    with pytest.raises(ValueError, match=r"conditions\.frequencies"):
        Classes(2, frequencies)


def test_an_unknown_number_of_classes_is_said():
    with pytest.raises(ValueError, match="number of classes is not known"):
        Classes().ask(torch.arange(2))
