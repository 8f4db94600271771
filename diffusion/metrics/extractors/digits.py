"""A small classifier of scikit-learn's handwritten digits, trained in seconds: a distance that needs no download."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.metrics.cache import load_or_make
from diffusion.metrics.extractors.base import Extractor, own_random_state
from diffusion.support.errors import UserError
from diffusion.support.progress import doing

RECIPE = 1  # part of the cache file's name: raise it when the network or its training changes
HELD_OUT = 360
EPOCHS = 30


def convolutions(channels: int) -> list[nn.Module]:
    """Three convolutions: [b, channels, h, w] -> the features of a quarter of the rows and columns, [b, 64 ceil(h/4) ceil(w/4)]."""
    layers = (
        nn.Conv2d(channels, 32, 3, padding=1),
        nn.Conv2d(32, 64, 3, stride=2, padding=1),
        nn.Conv2d(64, 64, 3, stride=2, padding=1),
    )
    return [*(part for layer in layers for part in (layer, nn.ReLU())), nn.Flatten()]


class DigitsNetwork(nn.Module):
    """Three convolutions and a hidden layer of 64: [b, 1, 8, 8] in [-1, 1] to (features [b, 64], logits [b, 10])."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *convolutions(1),
            nn.Linear(256, 64),
            nn.ReLU(),
        )
        self.head = nn.Sequential(nn.Dropout(0.3), nn.Linear(64, 10))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        features = self.body(x)
        return features, self.head(features)


class DigitsClassifier(Extractor):
    """The penultimate 64 features of `DigitsNetwork`, trained once with a fixed seed and cached under `cache`.

    `accuracy` is the share of the 360 held-out digits (of 1,797) that it names correctly. Several processes that want
    it at once train it once. `weights` is there because every extractor takes it: anything but None is refused.
    """

    name = "digits"
    frechet = "fd-digits"
    dim = 64
    channels = 1
    resize = "area to 8x8 (none for 8x8)"
    batch = 1024

    def __init__(self, weights: str | None = None, cache: str | Path = ".cache") -> None:
        if weights is not None:
            raise UserError("The digits classifier trains itself in seconds and reads no weights: drop metric.weights.")
        with doing("training the digits classifier of fd-digits, once"):
            state = load_or_make(Path(cache) / "extractors" / f"digits-recipe{RECIPE}.pt", train_classifier)
        self.accuracy = state.pop("accuracy").item()
        with own_random_state():
            network = DigitsNetwork()
        network.load_state_dict(state)
        super().__init__(network)

    def prepare(self, images: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(images.float(), 8) / 127.5 - 1


def digits() -> tuple[Tensor, Tensor]:
    """Network inputs [1797, 1, 8, 8] in [-1, 1] and labels [1797]; scikit-learn's 0..16 goes to 0..255, rounded."""
    from sklearn.datasets import load_digits  # here, because it takes a second and a cached classifier does not need it

    bunch = load_digits()
    images = (torch.from_numpy(bunch.images) * (255 / 16)).round()
    return (images / 127.5 - 1).float()[:, None], torch.from_numpy(bunch.target).long()


def train_classifier(seed: int = 0) -> dict[str, Tensor]:
    """The weights and, under "accuracy", the held-out accuracy: the same bits every time on the same kind of machine.

    Torch's random state and number of threads stay as they were.
    """
    images, labels = digits()
    with own_random_state(seed), one_thread(), torch.enable_grad():
        network = DigitsNetwork()
        held_out, kept = torch.randperm(len(images)).split([HELD_OUT, len(images) - HELD_OUT])
        steps = EPOCHS * (len(kept) // 64)
        optimizer = torch.optim.AdamW(network.parameters(), lr=2e-3)
        decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        for _ in range(steps):
            batch = kept[torch.randint(len(kept), (64,))]
            loss = F.cross_entropy(network(images[batch])[1], labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            decay.step()
    network.eval()
    with torch.no_grad():
        accuracy = (network(images[held_out])[1].argmax(1) == labels[held_out]).double().mean()
    return {**network.state_dict(), "accuracy": accuracy}


@contextmanager
def one_thread() -> Iterator[None]:
    """Sums in one order: the weights do not depend on how many threads there are."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
