"""The CIFAR-10 ResNet-56 of He et al. 2015, read from a file."""

from collections.abc import Mapping
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from diffusion.metrics.cache import UNREADABLE
from diffusion.metrics.extractors.base import Extractor, own_random_state
from diffusion.support.errors import UserError


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (He et al. 2015, section 4.2, option A)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.stride = stride
        self.new_channels = out_channels - in_channels

    def shortcut(self, x: Tensor) -> Tensor:
        """Every stride-th pixel, with zeros for the new channels, half before the old ones and half after."""
        before = self.new_channels // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.new_channels - before))

    def forward(self, x: Tensor) -> Tensor:
        h = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(h)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """6 n + 2 layers, stages of 16, 32 and 64 channels: [b, 3, 32, 32] to (features [b, 64], logits [b, 10])."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks)
        self.layer2 = self._stage(16, 32, 2, blocks)
        self.layer3 = self._stage(32, 64, 2, blocks)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(in_channels: int, out_channels: int, stride: int, blocks: int) -> nn.Sequential:
        rest = (BasicBlock(out_channels, out_channels, 1) for _ in range(blocks - 1))
        return nn.Sequential(BasicBlock(in_channels, out_channels, stride), *rest)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = F.relu(self.bn1(self.conv1(x)))
        features = self.layer3(self.layer2(self.layer1(h))).mean((2, 3))
        return features, self.linear(features)


class ResNet56(Extractor):
    """The 64 pooled features of a ResNet-56 trained on CIFAR-10's training images.

    `weights` names a checkpoint with the state dict under "state_dict" and keys that may begin with "module.". Pixels
    are divided by 255 and normalised by ImageNet's mean and deviation, as this network was trained. Raises UserError
    for no path, no such file and a file that is not such a checkpoint.
    """

    name = "resnet56"
    frechet = "fd-resnet56"
    dim = 64
    size = 32
    resize = "none (32x32)"

    def __init__(self, weights: str | Path | None = None, cache: str | Path = ".cache") -> None:
        with own_random_state():
            network = CifarResNet(blocks=9)
        network.load_state_dict(read_state(weights, network.state_dict()))
        super().__init__(network)
        self.mean = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1)
        self.std = torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)

    def to(self, device: torch.device | str) -> "ResNet56":
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return super().to(device)

    def prepare(self, images: Tensor) -> Tensor:
        return (images.float() / 255 - self.mean) / self.std


def read_state(path: str | Path | None, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state dict in a checkpoint, checked against `expected` by names and shapes; every failure is a UserError."""
    if path is None:
        raise UserError("fd-resnet56 reads its network from a file: give its path by metric.weights=PATH.")
    # Checkpoints from before PyTorch 0.4 lack the batch counters, which an evaluated network does not use.
    counters = {name: tensor for name, tensor in expected.items() if name.endswith("num_batches_tracked")}
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        state = counters | {name.removeprefix("module."): tensor for name, tensor in content["state_dict"].items()}
        fits = shapes(state) == shapes(expected)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: give the ResNet-56 checkpoint by metric.weights=PATH.") from None
    except UNREADABLE:
        fits = False
    if not fits:
        raise UserError(f"{path} does not hold a CIFAR-10 ResNet-56: give its checkpoint by metric.weights=PATH.")
    return state


def shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    """The names and shapes of a state dict."""
    return {name: tensor.shape for name, tensor in state.items()}
