"""The Inception network of the FID, through torch-fidelity."""

from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn

from diffusion.metrics.cache import UNREADABLE
from diffusion.metrics.extractors.base import Extractor, own_random_state
from diffusion.support.errors import UserError
from diffusion.support.files import lock


class WithSpatial(nn.Module):
    """torch-fidelity's network, which also returns what sFID looks at: the first 7 channels of mixed_6/conv, 17x17 each (Nash et al.
    2103.03841, app. C), seen on the way through."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.seen: list[Tensor] = []
        network.get_submodule("Mixed_6d.branch1x1").register_forward_hook(self.look)

    def look(self, module: nn.Module, args: tuple, output: Tensor) -> None:
        self.seen.append(output[:, :7].movedim(1, -1).flatten(1).float())  # in TensorFlow's order, as files of statistics have it

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return *self.network(x), self.seen.pop()


class InceptionV3(Extractor):
    """The 2,048 pool3 features and unbiased logits of the TensorFlow InceptionV3 that defines the FID.

    Network and resize are torch-fidelity's: bilinear as TensorFlow 1 did it (corners not aligned, no antialiasing) from
    any size to 299x299, then (x - 128) / 128. Not torchvision's Inception, whose weights and pooling differ.
    `weights` is a path, or None to download torch-fidelity's once. Raises UserError without the package, without a
    network to download from, or for a file that does not hold these weights.
    """

    name = "inception"
    frechet = "fid"
    dim = 2048
    resize = "TensorFlow 1 bilinear to 299x299"
    batch = 64
    layers = ("features", "logits", "spatial")

    def __init__(self, weights: str | Path | None = None, cache: str | Path = ".cache") -> None:
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError:
            raise UserError("The FID needs torch-fidelity: install it with pip install 'diffusion[metrics]'.") from None
        if weights is not None:
            check_weights(weights)
        try:
            # The lock lets one process of a machine download and the others find the file.
            with own_random_state(), lock(Path(cache) / "extractors" / "inception.lock"):
                network = FeatureExtractorInceptionV3(
                    "inception-v3-compat",
                    ["2048", "logits_unbiased"],
                    feature_extractor_weights_path=None if weights is None else str(weights),
                )
        except (URLError, TimeoutError, ConnectionError) as error:
            raise UserError(
                f"The FID Inception weights could not be downloaded ({error}): fetch {url()} "
                "on a machine with a network and give its path by metric.weights=PATH."
            ) from None
        except UNREADABLE:
            raise UserError(
                f"{weights or 'The downloaded file'} does not hold the FID Inception weights: "
                f"give the file of {url()} by metric.weights=PATH."
            ) from None
        super().__init__(network)
        self.network = WithSpatial(network)

    def prepare(self, images: Tensor) -> Tensor:
        return images.contiguous()


def url() -> str:
    """Where torch-fidelity downloads the weights from."""
    from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

    return URL_INCEPTION_V3


def check_weights(path: str | Path) -> None:
    """Read the file as plain tensors first: torch-fidelity would unpickle whatever it holds."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise UserError(f"There is no file {path}: give the FID Inception weights by metric.weights=PATH.") from None
    except UNREADABLE:
        raise UserError(f"{path} is not a file of plain tensors: give the file of {url()} by metric.weights=PATH.") from None
