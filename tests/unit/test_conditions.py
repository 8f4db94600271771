"""What images are asked for: nothing, or classes, in turn or as often as they are in the data."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from diffusion.conditions import Classes, Unconditional
from diffusion.grids import Trailing
from diffusion.guidance import CFGPlusPlus, ClassifierFree
from diffusion.guidance import Unconditional as WithoutCondition
from diffusion.oracles import GaussianMixture
from diffusion.support.errors import UserError

LABELS = np.array([0] * 60 + [1] * 30 + [3] * 10)
DATA = SimpleNamespace(name="some", labels=LABELS, num_classes=4, images=SimpleNamespace(shape=(100, 2), dtype="float32"))


def test_classes_in_turn():
    classes = Classes(4)
    assert classes.ask(torch.arange(9)).tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0]
    assert classes.period == 4 and classes.given and classes.network() == {"num_classes": 4} and classes.describe() is None
    assert torch.equal(classes.of(torch.tensor([2, 1])), torch.tensor([2, 1]))


@pytest.mark.parametrize("conditions", [Unconditional(), Classes(0)], ids=repr)
def test_no_condition(conditions):
    assert conditions.ask(torch.arange(3)) is None and conditions.of(torch.tensor([2, 1])) is None
    assert not conditions.given and conditions.period == 1 and conditions.network() == {"num_classes": 0} and conditions.describe() is None
    with pytest.raises(UserError, match="trained without a condition, so the condition=3 cannot be asked of it"):
        conditions.parse(3)


def test_frequencies_are_the_data_s():
    """60, 30, 0 and 10 of a hundred: of 20,000 images the share of each class is within 4 deviations."""
    facts = Classes(frequencies="data").facts(DATA)
    assert facts == {"num_classes": 4, "frequencies": [0.6, 0.3, 0.0, 0.1]}
    asked = Classes(**facts).ask(torch.arange(20_000))
    assert asked.dtype == torch.int64
    shares = np.bincount(asked, minlength=4) / 20_000
    for share, p in zip(shares, facts["frequencies"], strict=True):
        assert abs(share - p) <= 4 * (p * (1 - p) / 20_000) ** 0.5
    assert Classes(**facts).describe() == {"name": "Classes", "frequencies": facts["frequencies"]} and Classes(**facts).period == 1


def test_an_image_s_class_depends_on_its_number_alone():
    conditions = Classes(4, [6, 3, 0, 1])
    whole = conditions.ask(torch.arange(500))
    assert torch.equal(conditions.ask(torch.arange(100)), whole[:100])
    assert torch.equal(conditions.ask(torch.tensor([77, 3, 499])), whole[[77, 3, 499]])
    assert torch.equal(torch.cat([conditions.ask(part) for part in torch.arange(500)[1::2].split(7)]), whole[1::2])
    assert not torch.equal(whole[:4].repeat(125), whole)  # and they are no pattern
    assert torch.equal(Classes(4, [60, 30, 0, 10]).ask(torch.arange(500)), whole)  # weights need not add up to 1


@pytest.mark.parametrize("weights", [[1, 1], [1, 1, 1, -1], [0, 0, 0, 0], "often"], ids=str)
def test_frequencies_that_are_none_are_refused(weights):
    with pytest.raises(ValueError, match=r"conditions\.frequencies"):
        Classes(4, weights)


def test_another_number_of_classes_than_the_data_s_is_refused():
    with pytest.raises(UserError, match=r"conditions\.num_classes=5, and some has 4 classes"):
        Classes(5).facts(DATA)


def test_words():
    assert Classes(4).parse(3).tolist() == [3] and Classes(4).parse([3, "0"]).tolist() == [3, 0]
    for words in (4, -1, [0, 9], "cat", 1.5, True):
        with pytest.raises(UserError, match="is not among the model's classes, which are the numbers 0 to 3"):
            Classes(4).parse(words)


def test_a_negative_condition_is_a_class_a_tensor_or_refused():
    """Guidance away from class 3 is guidance whose other half was asked for class 3."""
    model = GaussianMixture(torch.tensor([[-1.0, 0], [1, 0], [0, 1], [0, -1]]), torch.full((4,), 0.2))
    x, t, cond = torch.randn(2, 2, generator=torch.Generator().manual_seed(0)).double(), torch.tensor(0.5).double(), torch.tensor([0, 1])
    want = None
    for negative in (3, "3", torch.tensor(3), torch.tensor([3, 3])):
        asked = []

        class Listening:
            schedule = model.schedule

            def __call__(self, x, t, cond=None, asked=asked):
                asked.append(cond.tolist())
                return model(x, t)

        got = ClassifierFree(Listening(), 2.0, negative, Classes(4))(x, t, cond)
        assert asked == [[0, 1, 3, 3]]
        want = got if want is None else want
        assert torch.equal(got.x0, want.x0)
    with pytest.raises(UserError, match="cat is not among the model's classes"):
        ClassifierFree(model, 2.0, "cat", Classes(4))
    with pytest.raises(UserError, match="trained without a condition"):
        ClassifierFree(model, 1.0, 3, Unconditional())


def test_an_unknown_number_of_classes_is_said():
    with pytest.raises(ValueError, match="number of classes is not known"):
        Classes().ask(torch.arange(2))


def test_without_a_null_class_there_is_nothing_to_be_guided_from():
    """At scale 1 and away from a class it is guided as any other; else the sentence comes before an image is made."""
    model = GaussianMixture(torch.tensor([[-1.0, 0], [1, 0]]), torch.full((2,), 0.2), classes=torch.arange(2))
    given = Classes(2, null_class=False)
    assert given.network() == {"num_classes": 2} and given.ask(torch.arange(3)).tolist() == [0, 1, 0]
    assert ClassifierFree(model, scale=1.0).asks(given) is given and ClassifierFree(model, scale=2.0, negative=1).asks(given) is given
    for guided in (ClassifierFree(model, scale=2.0), WithoutCondition(model), CFGPlusPlus(model, grid=Trailing(5), scale=0.5)):
        with pytest.raises(UserError, match="has not learned to go without its class"):
            guided.asks(given)
    assert WithoutCondition(model).asks(Classes(2)) == Classes(2)
