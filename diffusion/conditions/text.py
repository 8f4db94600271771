"""A condition that is a text: what is common to all encoders, and what images are asked for."""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from diffusion.conditions.rows import numbered_texts
from diffusion.networks import TextNetwork
from diffusion.support.errors import UserError
from diffusion.support.ranges import Checked, Few
from diffusion.typing import Rows


class TextEncoder(ABC):
    """What makes a condition of a text.

    One that is trained with the model is a part of its network, and a condition is the numbers of tokens, int64 [k, n]; one that is frozen
    belongs to the conditions, and a condition is what it made, float [k, n, channels]. `channels` is the width of a vector either way.
    With `pooled` the first of a text's vectors stands for the whole text, and networks add it to the time embedding too."""

    channels: Any
    pooled: bool

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Tensor:
        """The conditions of these texts, [k, n] or [k, n, channels]. A text that is too long is cut, with a warning."""

    def of_data(self, texts: Sequence[str], folder: Path | None) -> Rows:
        """`encode` of a data set's texts, of which there may be many; in `folder`, that of its cache, what takes long may be kept."""
        return self.encode(texts)

    def trained(self) -> nn.Module:
        """The part of the network that makes vectors [b, n, channels] of conditions; where the encoder is frozen it leaves them."""
        return nn.Identity()

    def facts(self, texts: Sequence[str]) -> dict[str, Any]:
        """The encoder's settings that follow from a data set's texts, as plain data by name."""
        return {}

    def describe(self) -> dict[str, Any]:
        """What a passport says of the encoder, beside the hash of the network's weights."""
        return {"name": type(self).__name__}


@dataclass(frozen=True)
class Text(Checked):
    """A text, by an encoder; the null condition is the empty text, which a missing caption is too.

    Image number i is asked for text i mod k of `prompts`, a list of k texts; without it of `captions`, up to `kept` different captions of
    the training data, evenly chosen (`facts` reads them). Raises ValueError for an encoder that is none."""

    encoder: TextEncoder
    prompts: Sequence[str] | None = None
    captions: Sequence[str] | None = None
    kept: Few = 100
    nulls: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False, compare=False)  # the null, on each device

    num_classes: ClassVar[int] = 0
    given: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not hasattr(self.encoder, "encode"):
            raise ValueError(f"conditions.encoder={self.encoder} encodes no texts: choose conditions=text, text_bytes, clip or t5.")

    @property
    def asked(self) -> Sequence[str]:
        """The texts that images are asked for in turn; none where nothing says them."""
        return self.prompts or self.captions or ()

    @property
    def period(self) -> int:
        """Images i and i + period are asked for the same text."""
        return len(self.asked) or 1

    def network(self) -> dict[str, Any]:
        """The arguments about the condition with which a network is built."""
        return {"num_classes": 0, "context_channels": self.encoder.channels, "pooled": self.encoder.pooled}

    def around(self, network: nn.Module) -> nn.Module:
        """The network behind the encoder. Raises UserError for one that does not look at a context."""
        looks, name = getattr(network, "context_channels", 0), type(network).__name__
        if looks != self.encoder.channels:
            raise UserError(
                f"conditions=text makes a context of vectors of {self.encoder.channels} numbers, and this {name} looks at "
                f"{f'vectors of {looks}' if looks else 'none'}: choose a U-Net with attention or a DiT, or conditions=classes."
            )
        if self.encoder.pooled and not getattr(network, "pooled", False):
            raise UserError(f"This {name} adds no vector of the context to the time: say conditions.encoder.pooled=false.")
        return TextNetwork(network, self.encoder.trained(), self.null)

    def labels(self, data: Any) -> Rows:
        """What the encoder makes of a data set's captions, [n, ...]. Raises UserError for a data set without captions."""
        folder = getattr(data.images, "filename", None)  # of the file that they are mapped from
        return self.encoder.of_data(captions_of(data), None if folder is None else Path(folder).parent)

    def of(self, labels: Tensor | None) -> Tensor | None:
        """The conditions of a batch of training images: what `labels` gives."""
        return labels

    @cached_property
    def nothing(self) -> Tensor:
        """The condition [n, ...] of the empty text."""
        return self.encoder.encode([""])[0]

    def null(self, cond: Tensor) -> Tensor:
        """The condition of the empty text for each of cond [b, ...], on its device."""
        if cond.device not in self.nulls:
            self.nulls[cond.device] = self.nothing.to(cond.device)
        return self.nulls[cond.device].expand(len(cond), *self.nothing.shape)

    def names(self, indices: Tensor) -> list[str]:
        """The texts that images number `indices` [b] are asked for. Raises ValueError where nothing says them."""
        if not self.asked:
            raise ValueError('Nothing says which text to ask for: say prompt="...", or conditions.prompts=["...","..."] in training.')
        return [self.asked[i % len(self.asked)] for i in indices.tolist()]

    def ask(self, indices: Tensor) -> Tensor | None:
        """The conditions of images number `indices` [b]: [b, ...]. Raises ValueError as `names` does."""
        distinct, number = numbered_texts(self.names(indices))
        return self.encoder.encode(distinct)[number]

    def parse(self, words: Any, key: str = "the condition") -> Tensor:
        """The conditions [k, ...] of a text, or of a list of k. Raises UserError for what is none, as a class is."""
        texts = list(words) if isinstance(words, list | tuple) else [words]
        if not texts or not all(isinstance(text, str) for text in texts):
            raise UserError(f'{key}={words} is not a text, and this model is asked by texts: say prompt="...".')
        return self.encoder.encode(texts)

    def describe(self) -> dict[str, Any] | None:
        """What the passport says: the encoder, and where the texts that images are asked for came from, with their hash."""
        source = "conditions.prompts" if self.prompts else "captions of the training data"
        digest = hashlib.sha256("\n".join(self.asked).encode()).hexdigest()[:16]
        return {"name": "Text", "encoder": self.encoder.describe(), "prompts": {"from": source, "count": len(self.asked), "hash": digest}}

    def facts(self, data: Any) -> dict[str, Any]:
        """The settings that follow from a data set, as plain data. Raises UserError for one without captions."""
        texts = captions_of(data)
        found: dict[str, Any] = {"encoder": self.encoder.facts(texts)}
        if not self.prompts:
            # A ${ would be a reference in the run's config.yaml.
            distinct = [text for text in dict.fromkeys(texts) if text and "${" not in text]
            count = min(self.kept, len(distinct))
            found["captions"] = [distinct[i * len(distinct) // count] for i in range(count)]
        return found


def captions_of(data: Any) -> list[str]:
    """A data set's captions, one for each item; one of blanks alone is the empty text. Raises UserError for a set without any."""
    captions = [text if text.strip() else "" for text in getattr(data, "captions", None) or ()]
    if not any(captions):
        raise UserError(
            f"conditions=text needs captions, and {data.name} has none: a folder has them in metadata.jsonl, in metadata.csv "
            "or in .txt files beside its pictures; or choose dataset=captioned_digits, or conditions=classes."
        )
    return captions
