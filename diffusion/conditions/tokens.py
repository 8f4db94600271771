"""Text encoders that are trained with the model: a small transformer over words, or over bytes."""

import hashlib
import logging
import re
from abc import abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion.conditions.text import TextEncoder
from diffusion.networks.text import PADDING, TextTransformer
from diffusion.support.errors import did_you_mean
from diffusion.support.ranges import Checked, Few, Some

START, UNKNOWN = PADDING + 1, PADDING + 2  # in any vocabulary, whose own tokens follow
NUMERALS = dict(zip("0123456789", ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"], strict=True))
log = logging.getLogger(__name__)


@cache
def warn_once(message: str) -> None:
    """A warning that a process says once, however often it is asked for the same texts."""
    log.warning(message)


def warn_cut(texts: Sequence[str], tokens: Sequence[int], length: int) -> None:
    """A warning if some of these texts, of so many tokens each, have more than `length`."""
    if cut := [text for text, count in zip(texts, tokens, strict=True) if count > length]:
        warn_once(f"{len(cut)} of {len(texts)} texts are cut to conditions.encoder.length={length} tokens, such as: {cut[0]}")


@dataclass(frozen=True)
class Tokens(Checked, TextEncoder):
    """A text as the numbers of its tokens, int64 [k, length]: START, the text's own, padding. A `TextTransformer` of the network makes
    vectors of them. START's vector, of which the empty text has no other, stands for the whole text."""

    length: Few = 32
    channels: Few = 128
    depth: Some = 2
    heads: Few = 4
    pooled: bool = False

    @property
    @abstractmethod
    def count(self) -> int:
        """How many tokens there are, with PADDING, START and UNKNOWN."""

    @abstractmethod
    def numbers(self, text: str) -> list[int]:
        """The numbers of a text's own tokens."""

    def encode(self, texts: Sequence[str]) -> Tensor:
        """[k, length] int64. What is cut, and each word that no training text had, is said once."""
        rows = [[START, *self.numbers(text)] for text in texts]
        warn_cut(texts, [len(row) for row in rows], self.length)
        padded = [row[: self.length] + [PADDING] * (self.length - len(row)) for row in rows]
        return torch.tensor(padded, dtype=torch.int64).reshape(len(texts), self.length)

    def describe(self) -> dict[str, Any]:
        """The encoder's name, and what its numbers mean, by a hash."""
        meaning = f"{self.length} {getattr(self, 'vocabulary', '')}"
        return {"name": type(self).__name__, "tokens": hashlib.sha256(meaning.encode()).hexdigest()[:16]}

    def trained(self) -> nn.Module:
        """The transformer, with the weights that it begins with."""
        return TextTransformer(self.count, self.length, self.channels, self.depth, self.heads)


@dataclass(frozen=True)
class Words(Tokens):
    """Tokens are words: letters and digits, in any case; what stands between them is left out, and a single numeral is its word.

    vocabulary: the words that are known, in one line; `facts` reads them from the data's captions, the `size` most frequent ones."""

    vocabulary: str | None = None
    size: Few = 10_000

    @cached_property
    def number(self) -> dict[str, int]:
        """The number of each known word. Raises ValueError while there are none."""
        if self.vocabulary is None:
            raise ValueError('The vocabulary is not known: say Words(vocabulary="a shirt left of ...").')
        return {word: i for i, word in enumerate(self.vocabulary.split(), UNKNOWN + 1)}

    @property
    def count(self) -> int:
        return UNKNOWN + 1 + len(self.number)

    def numbers(self, text: str) -> list[int]:
        words = words_in(text)
        for word in words:
            if word not in self.number:
                warn_once(f"The text encoder has never seen the word {word}{did_you_mean(word, self.number)}.")
        return [self.number.get(word, UNKNOWN) for word in words]

    def facts(self, texts: Sequence[str]) -> dict[str, Any]:
        """The vocabulary, unless it is given, in the order of the alphabet."""
        if self.vocabulary is not None:
            return {}
        counted = Counter(word for text in texts for word in words_in(text))
        return {"vocabulary": " ".join(sorted(sorted(counted, key=lambda word: (-counted[word], word))[: self.size]))}


@dataclass(frozen=True)
class Bytes(Tokens):
    """Tokens are the bytes of a text in UTF-8: nothing is unknown, and nothing is left out."""

    length: Few = 96

    count: ClassVar[int] = UNKNOWN + 1 + 256

    def numbers(self, text: str) -> list[int]:
        return [UNKNOWN + 1 + byte for byte in text.encode()]


def words_in(text: str) -> list[str]:
    """A text's words in lower case, a single numeral as its word: "A 7, left of 12" -> a, seven, left, of, 12."""
    return [NUMERALS.get(word, word) for word in re.findall(r"\w+", text.lower())]
