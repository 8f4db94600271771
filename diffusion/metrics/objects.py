"""A small classifier of what is in each place of composed pictures, trained once on real ones."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.metrics.cache import Tensors, load_or_make
from diffusion.metrics.extractors.base import own_random_state
from diffusion.metrics.extractors.digits import convolutions, one_thread
from diffusion.support.hashes import tensors_hash
from diffusion.support.progress import bar, doing

RECIPE = 1  # part of the cache file's name: raise it when the network or its training changes
STEPS, BATCH = 1500, 256
BLANK = 0.1  # share of the parts with nothing in them that are black all over, which composed pictures hardly have and samples may


class Scenes(Protocol):
    """A captioned data set (`diffusion.data.captioned`) whose pictures show scenes, a kind of object or nothing in each place."""

    name: ClassVar[str]

    @property
    def kinds(self) -> Sequence[Any]:
        """The kinds of objects."""

    def layouts(self) -> np.ndarray:
        """The kind in each place of each scene, or the number of kinds where there is nothing: int64 [scenes, places]."""

    def parts(self, pictures: Tensor) -> Tensor:
        """Pictures [n, h, w, c] cut into their places: [n, places, h/2, w/2, c]."""

    def of_split(self, split: str) -> Any:
        """The `ImageSet` of a split, with captions, whose labels are scenes."""


class PartsNetwork(nn.Module):
    """Three convolutions, then the features of all pixels: parts [b, c, h, w] in [-1, 1] -> logits [b, outputs]."""

    def __init__(self, channels: int, height: int, width: int, outputs: int) -> None:
        super().__init__()
        left = -(-height // 4) * -(-width // 4)
        self.body = nn.Sequential(
            *convolutions(channels),
            nn.Dropout(0.3),
            nn.Linear(64 * left, outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.body(x)


class SceneClassifier:
    """Which of the scenes a picture shows: the one whose objects, and nothing elsewhere, are likeliest by a `PartsNetwork`,

        argmax_s sum_places log p(layout(s, place) | the place's part).

    The network has seen the parts of the training pictures of `scenes` alone. It is trained once, with a fixed seed, and cached under
    `cache`; several processes that want it at once train it once."""

    def __init__(self, scenes: Scenes, cache: str | Path) -> None:
        train = scenes.of_split("train")
        self.scenes, self.layouts = scenes, torch.from_numpy(scenes.layouts())
        self.outputs = len(scenes.kinds) + 1
        with doing(f"training the classifier of the objects of {scenes.name}, once"):
            path = Path(cache) / "extractors" / f"objects-{scenes.name}-{train.sha256[:16]}-recipe{RECIPE}.pt"
            state = load_or_make(path, lambda: self.trained(train))
        with own_random_state():
            self.network = self.untrained(train).eval().requires_grad_(False)
        self.network.load_state_dict(state)
        self.weights_hash = tensors_hash(state)
        self.to("cpu")

    def to(self, device: torch.device | str) -> None:
        """Move to a device."""
        self.device = torch.device(device)
        self.network.to(self.device)
        self.layouts = self.layouts.to(self.device)

    def untrained(self, data: Any) -> PartsNetwork:
        """The network with random weights."""
        height, width, channels = data.images.shape[1:]
        return PartsNetwork(channels, height // 2, width // 2, self.outputs)

    def prepare(self, pictures: Tensor) -> Tensor:
        """uint8 pictures [n, h, w, c] -> the parts that the network takes, [n, places, c, h/2, w/2] in [-1, 1]."""
        return self.scenes.parts(pictures).permute(0, 1, 4, 2, 3).float() / 127.5 - 1

    def trained(self, data: Any) -> Tensors:
        """The weights: the same bits every time on the same kind of machine. Torch's random state and number of threads stay."""
        places = self.layouts.shape[1]
        with own_random_state(0), one_thread(), torch.enable_grad():
            network = self.untrained(data)
            optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
            decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, STEPS)
            for _ in bar(range(STEPS), "training the classifier of objects", STEPS):
                chosen, where = torch.randint(len(data), (BATCH,)), torch.randint(places, (BATCH,))
                parts = self.prepare(torch.from_numpy(data.images[chosen.numpy()]))[torch.arange(BATCH), where]
                kinds = self.layouts[torch.from_numpy(data.labels)[chosen], where]
                blank = (kinds == self.outputs - 1) & (torch.rand(BATCH) < BLANK)
                loss = F.cross_entropy(network(torch.where(blank[:, None, None, None], -1.0, parts)), kinds)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                decay.step()
        return network.state_dict()

    @torch.no_grad()
    def __call__(self, pictures: Tensor) -> Tensor:
        """The numbers of the scenes that uint8 pictures [n, h, w, c] show, int64 [n], on the classifier's device."""
        found = [torch.empty(0, dtype=torch.int64, device=self.device)]
        with torch.autocast(self.device.type, enabled=False):
            for chunk in pictures.split(BATCH):
                parts = self.prepare(chunk.to(self.device, non_blocking=True))
                logs = self.network(parts.flatten(0, 1)).log_softmax(1).unflatten(0, parts.shape[:2])  # [n, places, kinds + 1]
                places = torch.arange(parts.shape[1], device=self.device)
                found.append(logs[:, places, self.layouts].sum(2).argmax(1))
        return torch.cat(found)
