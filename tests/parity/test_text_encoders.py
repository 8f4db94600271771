"""Frozen text encoders against transformers' own, on tiny random folders; and what is kept of a data set's captions."""

import sys
from types import SimpleNamespace

import pytest
import torch
from stable_folders import clip

from diffusion.conditions import Text
from diffusion.conditions.tokens import warn_once
from diffusion.foreign import CLIP, T5
from diffusion.foreign.text import Frozen
from diffusion.support.errors import UserError

transformers = pytest.importorskip("transformers")
TEXTS = ["a sneaker left of a bag", "", "a, b = [c] $d", "a sneaker left of a bag"]
PIECES = ["<pad>", "</s>", "<unk>", "▁", "▁a", *"abcdefghijklmnopqrstuvwxyz"]


def t5(folder):
    words = transformers.T5Tokenizer(vocab=[(piece, -float(i > 3)) for i, piece in enumerate(PIECES)], extra_ids=0)
    words.save_pretrained(folder)
    torch.manual_seed(0)
    size = dict(d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2)
    transformers.T5EncoderModel(transformers.T5Config(vocab_size=len(words), **size)).save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def warned():
    warn_once.cache_clear()


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {"clip": clip(tmp_path_factory.mktemp("clip")), "t5": t5(tmp_path_factory.mktemp("t5"))}


@pytest.mark.parametrize("pad", ["<|endoftext|>", "!"], ids=["as 1.x pads", "as 2.x pads"])
def test_clip_s_vectors_are_transformers_own(tmp_path, pad):
    """The last hidden state of a text padded to 77 tokens, with no mask, as diffusers asks for it."""
    folder, encoder = clip(tmp_path, pad=pad), CLIP(str(tmp_path))
    words, model = transformers.CLIPTokenizer.from_pretrained(folder), transformers.CLIPTextModel.from_pretrained(folder).eval()
    assert (encoder.channels, encoder.length) == (16, 77)
    rows = encoder.encode(TEXTS)
    assert rows.shape == (4, 77, 16) and not rows.requires_grad
    for text, row in zip(TEXTS, rows, strict=True):
        ids = words(text, padding="max_length", max_length=77, truncation=True, return_tensors="pt").input_ids
        torch.testing.assert_close(row, model(ids)[0][0].detach(), rtol=0, atol=1e-6)
    pooled = CLIP(str(folder), pooled=True).encode(["a bag"])[0]
    ids = words("a bag", padding="max_length", max_length=77, return_tensors="pt").input_ids
    torch.testing.assert_close(pooled[0], model(ids).pooler_output[0].detach(), rtol=0, atol=1e-6)
    torch.testing.assert_close(pooled[1:], model(ids)[0][0].detach(), rtol=0, atol=1e-6)


def test_t5_s_vectors_do_not_depend_on_padding(folders):
    """Nor on the texts beside: they are those of the text alone, and padding's are 0."""
    words = transformers.T5Tokenizer.from_pretrained(folders["t5"])
    model = transformers.T5EncoderModel.from_pretrained(folders["t5"]).eval()
    rows = T5(str(folders["t5"]), length=40, pooled=True).encode(TEXTS)
    for text, row in zip(TEXTS, rows, strict=True):
        alone = model(**words(text, return_tensors="pt")).last_hidden_state[0].detach()
        torch.testing.assert_close(row[1 : 1 + len(alone)], alone, rtol=0, atol=1e-5)
        torch.testing.assert_close(row[0], alone.mean(0), rtol=0, atol=1e-5)
        assert not row[1 + len(alone) :].any()


def test_an_encoder_is_made_of_a_model_and_a_tokenizer(folders):
    words = transformers.CLIPTokenizer.from_pretrained(folders["clip"])
    made = CLIP.of(transformers.CLIPTextModel.from_pretrained(folders["clip"]).train(), words)
    assert torch.equal(made.encode(TEXTS), CLIP(str(folders["clip"])).encode(TEXTS))
    assert made.describe() == CLIP(str(folders["clip"])).describe()


def test_the_null_condition_is_the_encoded_empty_text(folders):
    encoder = CLIP(str(folders["clip"]))
    text = Text(encoder)
    cond = text.parse(["a bag", "a shirt"])
    assert torch.equal(text.null(cond), encoder.encode(["", ""])) and text.null(cond).abs().max() > 0.1
    with torch.autocast("cpu", torch.bfloat16):  # what surrounds a step of a training
        assert torch.equal(Text(CLIP(str(folders["clip"]))).nothing, text.nothing)

    class Listening(torch.nn.Module):
        context_channels = 16

        def forward(self, x, label, cond):
            return cond

    network = text.around(Listening())
    assert torch.equal(network(torch.zeros(2, 1), torch.zeros(2)), text.null(cond)) and not network.state_dict()
    assert not list(network.parameters())  # the encoder is none of the model's


def test_a_text_that_is_too_long_is_cut_with_a_warning(folders, caplog):
    encoder = CLIP(str(folders["clip"]), length=8)
    rows = encoder.encode(["abcdef", "abcdefg", "abcdefgh"])
    assert torch.equal(rows[0], encoder.encode(["abcdef"])[0])
    messages = [record.getMessage() for record in caplog.records if record.name.startswith("diffusion")]
    assert messages == ["2 of 3 texts are cut to conditions.encoder.length=8 tokens, such as: abcdefg"]


def imageset(tmp_path, captions):
    return SimpleNamespace(name="some", captions=captions, images=SimpleNamespace(filename=str(tmp_path / "cache/images.u8")))


def test_captions_are_encoded_once(folders, tmp_path, monkeypatch):
    """Each different one; the next time they are read, and made again for another encoder, other captions or a damaged file."""
    asked = []
    batches = Frozen.batches
    monkeypatch.setattr(Frozen, "batches", lambda self, texts, batch=64: asked.append(len(texts)) or batches(self, texts, batch))
    data = imageset(tmp_path, [*TEXTS, "   "])

    def rows(encoder, data=data):
        return Text(encoder).labels(data)

    kept = rows(CLIP(str(folders["clip"])))
    first = kept[:]
    assert len(kept) == 5 and kept[torch.tensor([0, 3])].shape == (2, 77, 16) and asked == [3]
    assert torch.equal(first, CLIP(str(folders["clip"])).encode([*TEXTS, ""])) and asked.pop() == 3
    assert torch.equal(rows(CLIP(str(folders["clip"])))[:], first) and asked == [3]
    (file,) = (tmp_path / "cache").glob("text-*.f32")
    file.write_bytes(file.read_bytes()[:-4])
    assert torch.equal(rows(CLIP(str(folders["clip"])))[:], first) and asked == [3, 3]
    content = bytearray(file.read_bytes())
    content[40] ^= 1
    file.write_bytes(content)
    assert torch.equal(rows(CLIP(str(folders["clip"])))[:], first) and asked.pop() == 3
    rows(CLIP(str(clip(tmp_path / "other", seed=1))))
    rows(CLIP(str(folders["clip"]), pooled=True))
    rows(CLIP(str(folders["clip"])), imageset(tmp_path, ["another"]))
    assert asked == [3, 3, 3, 3, 1] and len(list((tmp_path / "cache").glob("text-*.f32"))) == 4


def test_another_encoder_than_the_run_s_is_refused(folders, tmp_path):
    facts = Text(CLIP(str(folders["clip"]))).facts(imageset(tmp_path, TEXTS))["encoder"]
    assert facts["folder"] == str(folders["clip"]) and len(facts["hash"]) == 16
    assert CLIP(**facts).encode(["a"]).shape == (1, 77, 16)
    other = clip(tmp_path / "other", seed=1)
    with pytest.raises(
        UserError, match=rf"encoder\.folder={other} holds another model than the run was trained with: its hash is \w+, and"
    ):
        _ = CLIP(str(other), hash=facts["hash"]).channels


def test_a_folder_that_is_no_encoder_is_one_sentence(folders, tmp_path):
    with pytest.raises(UserError, match=rf"There is no {tmp_path / 'config.json'}"):
        _ = CLIP(str(tmp_path)).channels
    with pytest.raises(UserError, match=r"folder=/nowhere/at/all is no folder: say that of a text encoder"):
        _ = CLIP("/nowhere/at/all").channels
    with pytest.raises(UserError, match="holds a model of the kind clip_text_model, and T5 reads t5"):
        _ = T5(str(folders["clip"])).channels
    mixed = clip(tmp_path / "mixed")
    (mixed / "tokenizer.json").unlink()
    with pytest.raises(UserError, match="tokenizer"):
        _ = CLIP(str(mixed)).channels


def test_a_missing_extra_is_named(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(UserError, match=r"needs transformers: install it with pip install 'diffusion\[text\]'"):
        _ = CLIP(str(folders["clip"])).channels
