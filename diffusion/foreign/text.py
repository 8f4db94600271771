"""Text encoders of transformers, frozen: a condition is the vectors that they make of a text."""

import hashlib
import json
import logging
import math
import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

from diffusion.conditions.rows import Repeated, numbered_texts
from diffusion.conditions.text import TextEncoder
from diffusion.conditions.tokens import warn_cut
from diffusion.foreign.files import imported, pretrained, read_json
from diffusion.support.devices import preferred
from diffusion.support.errors import UserError
from diffusion.support.files import atomic, lock
from diffusion.support.hashes import tensors_hash
from diffusion.support.progress import bar
from diffusion.support.ranges import Few, require
from diffusion.typing import Rows

REMEMBERED = 1000  # texts whose vectors are kept in memory
log = logging.getLogger(__name__)


class Frozen(TextEncoder):
    """A text encoder that is not trained: [k, length, channels] float32, with `pooled` [k, length + 1, channels], of k texts.

    It is no part of a model's weights. A run's config.yaml has its folder and the hash of its weights and tokenizer, with which `hash` is
    compared when they are read; that is when they are first needed. The vectors of a data set's captions are kept beside its cache.

    Args:
        folder: of the model and its tokenizer as transformers saves them, or the name of one on Hugging Face's hub; of the weights only
            safetensors are read.
        length: tokens of a text, padding counted; None for as many as the encoder takes.
        pooled: the vector of the whole text stands before those of its tokens, and networks add it to the time embedding too.
        hash: of the weights and the tokenizer that are expected there; None for any.

    Raises:
        UserError: when they are first needed: if there is no such model, or its hash is another.
    """

    model_class: ClassVar[str]
    model_types: ClassVar[tuple[str, ...]]  # as config.json names them
    tokenizer_class: ClassVar[str]

    def __init__(self, folder: str, length: Few | None = None, pooled: bool = False, hash: str | None = None) -> None:
        require(self, locals())
        self.folder, self.said_length, self.pooled, self.hash = folder, length, pooled, hash
        self.known: dict[str, Tensor] = {}

    @classmethod
    def of(cls, model: nn.Module, tokenizer: Any, length: Few | None = None, pooled: bool = False) -> Self:
        """The encoder made of a model and a tokenizer that are there already."""
        made = cls("", length, pooled)
        made.parts = model.eval().requires_grad_(False), tokenizer
        return made

    @classmethod
    def read(cls, folder: Path, words: Path) -> tuple[Any, Any]:
        """The model in a folder and the tokenizer in `words`. Raises UserError if they cannot be read, or do not fit each other."""
        kind = read_json(folder / "config.json").get("model_type")
        if kind not in cls.model_types:
            raise UserError(f"{folder} holds a model of the kind {kind}, and {cls.__name__} reads {' or '.join(cls.model_types)}.")
        with torch.random.fork_rng(devices=[]):
            model: Any = pretrained("transformers", cls.model_class, folder)
        try:
            tokenizer = getattr(imported("transformers"), cls.tokenizer_class).from_pretrained(words, local_files_only=True)
        except Exception as error:  # the library raises many kinds for a damaged file
            raise UserError(f"{words} holds no {cls.tokenizer_class} that can be read ({type(error).__name__}).") from error
        known, most = model.config.vocab_size, max(tokenizer.get_vocab().values(), default=0)
        if not 3 < len(tokenizer) <= known or most >= known or tokenizer.model_max_length < 2:
            raise UserError(
                f"{words} has a tokenizer of {len(tokenizer)} tokens up to number {most}, {tokenizer.model_max_length} to a text, for an "
                f"encoder that knows {known}."
            )
        return model, tokenizer

    @abstractmethod
    def vectors(self, model: Any, tokens: Any) -> tuple[Tensor, Tensor]:
        """(the vectors [k, length, channels], that of the whole text [k, channels]) of what the tokenizer made of k texts."""

    @cached_property
    def parts(self) -> tuple[Any, Any]:
        """The model and its tokenizer."""
        if find_spec("transformers") is None:
            raise UserError("A frozen text encoder needs transformers: install it with pip install 'diffusion[text]'.")
        place = found(self.folder)
        model, tokenizer = self.read(place, place)
        if self.hash is not None and self.hash != (here := parts_hash(model, tokenizer)):
            raise UserError(
                f"conditions.encoder.folder={self.folder} holds another model than the run was trained with: its hash is {here}, and "
                f"conditions.encoder.hash is {self.hash}; bring the model of the run back there."
            )
        return model, tokenizer

    @cached_property
    def weights(self) -> str:
        """The hash of the weights and the tokenizer."""
        return parts_hash(*self.parts)

    @property
    def channels(self) -> int:
        """Width of a vector."""
        return self.parts[0].config.hidden_size

    @property
    def length(self) -> int:
        """Tokens of a text, padding counted."""
        model, tokenizer = self.parts
        most = min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", math.inf))
        return most if self.said_length is None else min(self.said_length, most)

    def encode(self, texts: Sequence[str]) -> Tensor:
        """The vectors of texts, on the CPU; those of the last ones are remembered."""
        if new := [text for text in dict.fromkeys(texts) if text not in self.known]:
            if len(self.known) + len(new) > REMEMBERED:
                self.known.clear()
                new = list(dict.fromkeys(texts))
            self.known |= dict(zip(new, torch.cat(list(self.batches(new))), strict=True))
        return torch.stack([self.known[text] for text in texts])

    @torch.no_grad()
    def batches(self, texts: Sequence[str], batch: int = 64) -> Iterator[Tensor]:
        """The vectors of texts, in batches, on the CPU and in float32 whatever the model around them is computed in."""
        model, tokenizer = self.parts
        counts = [len(ids) for ids in tokenizer(list(texts), verbose=False).input_ids]
        warn_cut(texts, counts, self.length)
        for i in bar(range(0, len(texts), batch), f"encoding {len(texts):,} texts", -(-len(texts) // batch)):
            given = {"padding": "max_length", "truncation": True, "max_length": self.length, "return_tensors": "pt"}
            tokens = tokenizer(list(texts[i : i + batch]), **given).to(model.device)
            with torch.autocast(model.device.type, enabled=False):
                each, whole = self.vectors(model, tokens)
            yield (torch.cat([whole[:, None], each], 1) if self.pooled else each).float().cpu()

    def of_data(self, texts: Sequence[str], folder: Path | None) -> Rows:
        """The vectors of a data set's texts, each different one once; mapped from a file in `folder` that is made the first time."""
        distinct, number = numbered_texts(list(texts))
        return Repeated(torch.cat(list(self.batches(distinct))) if folder is None else self.kept(distinct, folder), number)

    def kept(self, texts: Sequence[str], folder: Path) -> Tensor:
        """The vectors of texts, mapped from a file whose name is a hash of the model, the tokenizer, the settings and the texts, and that
        ends in the sha256 of its numbers: one that was damaged is made again."""
        model, _ = self.parts
        said = json.dumps([self.weights, self.length, self.pooled, list(texts)])
        shape = len(texts), self.length + self.pooled, self.channels
        file = folder / f"text-{hashlib.sha256(said.encode()).hexdigest()[:16]}.f32"
        with lock(file.with_name(f".{file.name}.lock")):
            if not sealed(file, 4 * math.prod(shape)):
                model.to(preferred())
                digest = hashlib.sha256()
                with atomic(file) as temporary, open(temporary, "wb") as opened:
                    for rows in self.batches(texts):
                        numbers = rows.contiguous().numpy().data
                        digest.update(numbers)
                        opened.write(numbers)
                    opened.write(digest.digest())
                model.cpu()
        return torch.from_file(str(file), shared=False, size=math.prod(shape), dtype=torch.float32).reshape(shape)

    def facts(self, texts: Sequence[str]) -> dict[str, Any]:
        """Where the model is, from wherever the run will be sampled, and its hash."""
        place = str(Path(self.folder).absolute()) if Path(self.folder).is_dir() else self.folder
        return {"folder": place, "hash": self.weights}

    def describe(self) -> dict[str, Any]:
        """What a passport says of the encoder."""
        return {"name": type(self).__name__, "weights": self.weights, "length": self.length}


class CLIP(Frozen):
    """CLIP's text model (Radford et al. 2021) as Stable Diffusion 1.x uses it: the hidden states behind the last norm, of a text padded to
    `length` tokens as its tokenizer pads, with no mask, so that padding is seen. The whole text's vector is that of its end."""

    model_class, tokenizer_class = "CLIPTextModel", "CLIPTokenizer"
    model_types = ("clip_text_model", "clip")

    def vectors(self, model: Any, tokens: Any) -> tuple[Tensor, Tensor]:
        out = model(input_ids=tokens.input_ids)
        return out.last_hidden_state, out.pooler_output


class T5(Frozen):
    """T5's encoder (Raffel et al. 2020) as Imagen uses it (Saharia et al. 2022): padding is not looked at, and its vectors are 0. The whole
    text's vector is the mean of its tokens'."""

    model_class, tokenizer_class = "T5EncoderModel", "T5Tokenizer"
    model_types = ("t5",)

    def vectors(self, model: Any, tokens: Any) -> tuple[Tensor, Tensor]:
        there = tokens.attention_mask[..., None]
        each = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask).last_hidden_state * there
        return each, each.sum(1) / there.sum(1)


def sealed(file: Path, size: int) -> bool:
    """Whether a file holds so many bytes and then their sha256."""
    if not file.is_file():
        return False
    with open(file, "rb") as opened:
        digest, left = hashlib.sha256(), size
        while part := opened.read(min(left, 2**24)):
            digest.update(part)
            left -= len(part)
        if left == 0 and opened.read() == digest.digest():
            return True
    log.warning("The vectors of texts in %s are damaged and are made again.", file)
    return False


def found(folder: str) -> Path:
    """The folder of a model, brought from the hub if it is a name there. Raises UserError if it cannot be had."""
    if Path(folder).is_dir():
        return Path(folder)
    if not re.fullmatch(r"[\w-][\w.-]*(/[\w-][\w.-]*)?", folder):
        raise UserError(
            f"conditions.encoder.folder={folder} is no folder: say that of a text encoder, with its model.safetensors and tokenizer."
        )
    try:
        from huggingface_hub import snapshot_download

        return Path(snapshot_download(folder, allow_patterns=["*.safetensors*", "*.json", "*.txt", "*.model"]))
    except Exception as error:  # of a name that is none, of what is not there, of the network
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise UserError(
            f"conditions.encoder.folder={folder} is no folder, and the hub does not give it ({reason}): say the folder of a text encoder, "
            "with its model.safetensors and tokenizer."
        ) from error


def parts_hash(model: nn.Module, tokenizer: Any) -> str:
    """The hash of a model's weights and of all that its tokenizer does."""
    words = json.loads(tokenizer.backend_tokenizer.to_str()) | {"padding": None, "truncation": None}  # these two are the last call's
    said = json.dumps([tensors_hash(model.state_dict()), words, tokenizer.special_tokens_map], sort_keys=True, default=str)
    return hashlib.sha256(said.encode()).hexdigest()[:16]
