"""Conditions that are texts, and the encoders that are trained with the model."""

from types import SimpleNamespace

import pytest
import torch
import yaml
from composing import composed

from diffusion.conditions import Bytes, Classes, Text, TextEncoder, Unconditional, Words
from diffusion.conditions.tokens import START, UNKNOWN, warn_once, words_in
from diffusion.denoiser import Denoiser
from diffusion.guidance import Autoguidance, ClassifierFree
from diffusion.model import assemble, completed
from diffusion.networks import MLP, DiT, TextTransformer, UNet
from diffusion.parameterization import Epsilon
from diffusion.schedules import Cosine
from diffusion.support.errors import UserError

CAPTIONS = ["a seven left of a two", "A 7 above a 2!", "", "a two below a seven", "   ", "a seven left of a two"]
WORDS = "a above below left of seven two"
SMALL = dict(channels=8, depth=1, heads=2)


def imageset(captions=CAPTIONS):
    images = SimpleNamespace(shape=(len(captions or [0]), 8, 8, 1), dtype="uint8")
    return SimpleNamespace(name="some", captions=captions, labels=None, num_classes=0, images=images)


@pytest.fixture(autouse=True)
def warned():
    """What was said before counts as unsaid."""
    warn_once.cache_clear()


def awake(network):
    """The network with no layer at 0, so that everything reaches the output."""
    generator = torch.Generator().manual_seed(0)
    for p in network.parameters():
        if not p.detach().any():
            torch.nn.init.normal_(p, std=0.2, generator=generator)
    return network


def test_the_vocabulary_is_the_captions_words():
    assert Words().facts(CAPTIONS) == {"vocabulary": WORDS}
    assert Words(size=2).facts(CAPTIONS) == {"vocabulary": "a seven"}  # 8 times and 4, and "two" 4 times too, behind it in the alphabet
    assert Words(vocabulary="a").facts(CAPTIONS) == {}
    with pytest.raises(ValueError, match="vocabulary is not known"):
        Words().encode(["a"])


def test_words_are_numbers():
    """Case, marks and the way a numeral is written make no difference."""
    words = Words(vocabulary=WORDS, length=8)
    number = {word: i + UNKNOWN + 1 for i, word in enumerate(WORDS.split())}
    said = words.encode(["A SEVEN, left of a (two)", "a 7 left of a 2", ""])
    assert said[0].tolist() == [START, *(number[word] for word in ["a", "seven", "left", "of", "a", "two"]), 0]
    assert words_in("12 of 7, 01 and 789") == ["12", "of", "seven", "01", "and", "789"]
    assert torch.equal(said[0], said[1]) and said[2].tolist() == [START] + [0] * 7 and said.dtype == torch.int64


def test_a_word_that_is_not_known_is_named_once(caplog):
    words = Words(vocabulary=WORDS)
    assert words.encode(["a sevven"])[0, 2] == UNKNOWN
    words.encode(["a sevven"])
    assert [record.getMessage() for record in caplog.records] == ["The text encoder has never seen the word sevven; did you mean seven."]


def test_a_text_that_is_too_long_is_cut_with_a_warning(caplog):
    rows = Bytes(length=5).encode(["abcd", "abcde", "é"])
    assert rows.tolist() == [[START, *(3 + ord(c) for c in "abcd")]] * 2 + [[START, 3 + 0xC3, 3 + 0xA9, 0, 0]]
    (record,) = caplog.records
    assert record.getMessage() == "1 of 3 texts are cut to conditions.encoder.length=5 tokens, such as: abcde"


def test_padding_does_not_change_a_text():
    """Nor do the texts beside it; the other tokens do."""
    torch.manual_seed(0)
    network = TextTransformer(20, length=9, channels=8, depth=2, heads=2).double()
    short, other = torch.tensor([[1, 5, 7]]), torch.tensor([[1, 5, 8, 9, 4, 3, 2, 6, 7]])
    alone = network(short)
    padded = network(torch.cat([torch.nn.functional.pad(short, (0, 6)), other]))
    torch.testing.assert_close(padded[:1, :3], alone, rtol=0, atol=1e-12)
    assert not padded[0, 3:].any() and (padded[1, :2] - alone[0, :2]).abs().min() > 1e-4


def test_the_order_of_words_matters():
    torch.manual_seed(0)
    network, words = TextTransformer(20, channels=8, heads=2), Words(vocabulary=WORDS)
    a, b = network(words.encode(["a seven left of a two", "a two left of a seven"]))
    assert (a[0] - b[0]).abs().max() > 1e-3  # the first vector, which stands for all


def test_a_text_s_null_is_the_empty_text():
    """Of a caption that is missing, of one of blanks, of dropped conditions, and of None."""
    text = Text(Words(vocabulary=WORDS, **SMALL))
    rows = text.labels(imageset())
    assert rows.shape == (6, 32) and torch.equal(rows[2], rows[4]) and torch.equal(rows[0], rows[5])
    assert torch.equal(text.null(rows), rows[2].expand(6, -1)) and text.of(rows) is rows
    torch.manual_seed(0)
    network = awake(text.around(UNet(1, 1, 8, 8, (1, 2), 1, attention=(4,), **{k: v for k, v in text.network().items() if k != "pooled"})))
    x, label = torch.randn(6, 1, 8, 8), torch.full((6,), 3.0)
    assert torch.equal(network(x, label), network(x, label, text.null(rows)))
    assert (network(x, label) - network(x, label, rows)).abs().amax((1, 2, 3)).gt(1e-6).tolist() == [True, True, False, True, False, True]


def test_what_images_are_asked_for():
    facts = Text(Words(), kept=2).facts(imageset())
    assert facts == {"captions": [CAPTIONS[0], CAPTIONS[1]], "encoder": {"vocabulary": WORDS}}
    assert "captions" not in Text(Words(), prompts=["a two"]).facts(imageset())
    asked = Text(Words(vocabulary=WORDS), captions=["a two", "a seven"])
    assert asked.names(torch.tensor([0, 3, 4])) == ["a two", "a seven", "a two"] and asked.period == 2
    assert torch.equal(asked.ask(torch.tensor([0, 3, 4])), asked.parse(["a two", "a seven", "a two"]))
    mine = Text(Words(vocabulary=WORDS), prompts=["a two"], captions=["a seven"])
    assert mine.names(torch.arange(1)) == ["a two"] and mine.describe()["prompts"]["from"] == "conditions.prompts"
    assert asked.describe()["prompts"]["from"] == "captions of the training data"
    assert asked.describe() != Text(Words(vocabulary=WORDS), captions=["a two", "a two"]).describe()  # another passport
    with pytest.raises(ValueError, match=r'say prompt="\.\.\."'):
        Text(Bytes()).ask(torch.arange(2))


def test_captions_with_references_are_not_asked_for():
    """In the run's config.yaml they would be read as such, and refused."""
    assert Text(Bytes()).facts(imageset(["costs ${oc.env:HOME}", "costs $5"]))["captions"] == ["costs $5"]


@pytest.mark.parametrize("captions", [None, ["", " "]], ids=str)
def test_data_without_captions_are_refused(captions):
    for ask in (Text(Words()).facts, Text(Bytes()).labels):
        with pytest.raises(UserError, match=r"needs captions, and some has none: a folder has them in metadata.jsonl"):
            ask(imageset(captions))


def test_a_class_is_no_text_and_a_text_no_class():
    with pytest.raises(UserError, match=r'^classes=3 is not a text, and this model is asked by texts: say prompt="\.\.\."\.$'):
        Text(Bytes()).parse(3, "classes")
    with pytest.raises(UserError, match=r"^prompt=a cat is not among the model's classes, which are the numbers 0 to 3\.$"):
        Classes(4).parse("a cat", "prompt")
    with pytest.raises(UserError, match="trained without a condition, so prompt=a cat cannot be asked of it"):
        Unconditional().parse("a cat", "prompt")


NETWORKS = {
    "unet": lambda **told: UNet(1, 1, 8, 8, (1, 2), 1, attention=(4,), **told),
    "dit": lambda **told: DiT(1, 1, 8, width=8, depth=1, heads=2, **told),
}


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_looks_at_every_word(name, pooled):
    """And what it looks at is trained: the gradient of each word's vector, and of the encoder's every weight."""
    text = Text(Words(vocabulary=WORDS, pooled=pooled, **SMALL))
    torch.manual_seed(0)
    network = awake(text.around(NETWORKS[name](**text.network())))
    cond = text.parse(["a seven left of a two", "two"])
    out = network(torch.randn(2, 1, 8, 8), torch.tensor([3.0, 500.0]), cond)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())
    grad = network.encoder.table.weight.grad
    assert grad.any(1).nonzero().flatten().tolist() == sorted({*cond.unique().tolist()} - {0})
    assert not network.network.pooled or network.network.pool.weight.grad.any()


def test_pooled_is_the_first_vector_beside_the_time():
    """A context whose first vector alone differs moves the time's embedding by W times the difference."""
    net, label = NETWORKS["dit"](context_channels=6, pooled=True), torch.tensor([5.0])
    net.time.forward = lambda label: torch.zeros(1, 8)
    context = torch.randn(1, 4, 6)
    want = torch.nn.functional.silu(net.pool.weight @ context[0, 0])
    torch.testing.assert_close(net.given(label, context).embedding[0], want)
    assert not net.given(label, None).embedding.any()
    with pytest.raises(ValueError, match="set context_channels too"):
        NETWORKS["dit"](pooled=True)


def test_a_network_that_does_not_look_is_refused():
    text = Text(Words(vocabulary=WORDS, **SMALL))
    with pytest.raises(UserError, match=r"vectors of 8 numbers, and this MLP looks at none: choose a U-Net with attention or a DiT"):
        text.around(MLP())
    with pytest.raises(UserError, match="and this DiT looks at vectors of 5"):
        text.around(NETWORKS["dit"](context_channels=5))
    with pytest.raises(UserError, match=r"say conditions\.encoder\.pooled=false"):
        Text(Words(vocabulary=WORDS, pooled=True, **SMALL)).around(NETWORKS["dit"](context_channels=8))


@pytest.mark.parametrize(
    "words", ["conditions=text", "conditions=text_bytes network=dit_digits", "conditions=text conditions.encoder.pooled=true"]
)
def test_a_run_s_configuration_builds_its_model(words):
    """With what was read from the data, as config.yaml keeps it, without the data."""
    config = composed(*words.split(), "codec.data_shape=[8,8,1]")
    kept = yaml.safe_load(yaml.safe_dump(completed(config, imageset())))
    model = assemble(kept)
    assert kept["conditions"]["captions"] == [CAPTIONS[0], CAPTIONS[1], CAPTIONS[3]]
    x = model.denoiser(torch.randn(3, 1, 8, 8), torch.tensor(0.5), model.conditions.ask(torch.arange(3))).x0
    assert x.shape == (3, 1, 8, 8)


class Vectors(TextEncoder):
    """Frozen: a text of numbers is one vector of them; the empty text is zeros."""

    channels, pooled = 2, False

    def encode(self, texts):
        return torch.tensor([[[float(n) for n in text.split()] or [0.0, 0.0]] for text in texts])


def test_a_negative_text_is_read_once():
    read = []

    class Reading(Vectors):
        def encode(self, texts):
            read.append(list(texts))
            return super().encode(texts)

    class Adding(torch.nn.Module):
        context_channels = 2

        def forward(self, x, label, cond):
            return x + cond[:, 0]

    text = Text(Reading())
    denoiser = Denoiser(text.around(Adding()), Cosine(), Epsilon())
    guided = ClassifierFree(denoiser, 3.0, "1 2", text)
    x, t, cond = torch.zeros(2, 2), torch.tensor(0.5), text.parse(["5 5", ""])
    for _ in range(4):
        eps = guided(x, t, cond).eps
    torch.testing.assert_close(eps, torch.tensor([[13.0, 11.0], [-2.0, -4.0]]))  # n + 3 (c - n)
    assert read == [["1 2"], ["5 5", ""]]


def test_what_is_no_encoder_is_refused():
    with pytest.raises(ValueError, match=r"^conditions\.encoder=None encodes no texts: choose conditions=text, text_bytes, clip or t5\.$"):
        Text(None)


def test_a_second_model_reads_the_same_texts():
    """One with another vocabulary would take a word's number for another word."""

    class Second:
        schedule = Cosine()

        def __init__(self, vocabulary):
            self.conditions = Text(Words(vocabulary=vocabulary))

    mine = Second(WORDS)
    assert Autoguidance(mine, Second(WORDS), conditions=mine.conditions).weight == 2
    for other in (Second("a " + WORDS), SimpleNamespace(schedule=Cosine(), conditions=Classes(3))):
        with pytest.raises(ValueError, match="second model was trained with another text encoder than the model; train it again"):
            Autoguidance(mine, other, conditions=mine.conditions)
