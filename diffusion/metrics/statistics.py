"""Mean and covariance of features in a file: pytorch-fid's and EDM's npz (mu, sigma), guided-diffusion's (mu_s, sigma_s too, beside
images), and ours, which also say what made them."""

import hashlib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import numpy as np
import torch

from diffusion.metrics.extractors import Extractor
from diffusion.metrics.frechet import Fitted, Gaussian
from diffusion.metrics.reference import RealImages, reference_moments
from diffusion.npz import headers, reading
from diffusion.passport import code_version
from diffusion.support.errors import UserError
from diffusion.support.files import atomic

KEYS = {"features": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}  # by the layer of the features
# What ours say beside them, and of what kind
SAID = {"n": int, "extractor": str, "weights_hash": str, "data": str, "split": str, "data_sha256": str, "code": str}
UNKNOWN = "not said by the file"


@dataclass(frozen=True)
class Statistics:
    """Real images that are known by the mean and the covariance of their features.

    `gaussians` are those of each layer; `made_by` is what the file says of itself, nothing where it is another program's. Such a file is
    taken to be of the FID Inception network. `pictures` are the real images that the file holds too, if it does: metrics that need images,
    such as precision and recall, look at those, as guided-diffusion's do, which may be fewer than the statistics are of."""

    path: Path
    sha256: str
    gaussians: Mapping[str, Gaussian]
    made_by: Mapping[str, Any]
    pictures: RealImages | None = None
    split: str = UNKNOWN

    @property
    def name(self) -> str:
        """The name of its data, or of the file."""
        return Path(self.made_by.get("data", self.path.name)).name  # which may become that of a file in the cache

    @property
    def images(self) -> np.ndarray:
        """The images beside the statistics. Raises UserError if there are none."""
        if self.pictures is None:
            raise UserError(f"{self.path} holds a mean and a covariance and no images: say metric=fid, or a reference=FOLDER of images.")
        return self.pictures.images

    @property
    def labels(self) -> np.ndarray | None:
        """The classes of the images beside the statistics."""
        return None if self.pictures is None else self.pictures.labels

    @property
    def about(self) -> dict[str, Any]:
        """What a passport says of the statistics, unknown things too."""
        return {"file": "mean and covariance", "extractor": self.made_by.get("weights_hash", UNKNOWN)}

    def gaussian(self, extractor: Extractor, layer: str) -> Gaussian:
        """The Gaussian of this layer, on the extractor's device.

        Raises UserError where the file has none of this layer, or where it is another network's."""
        if layer not in self.gaussians:
            raise UserError(f"{self.path} holds {' and '.join(self.gaussians)}, and this metric compares {layer}: choose another metric.")
        found, theirs = self.gaussians[layer], self.made_by.get("weights_hash")
        if theirs not in (None, extractor.weights_hash):
            own = f"{extractor.name} with weights {extractor.weights_hash}"
            raise UserError(f"{self.path} holds features of {self.made_by['extractor']} with weights {theirs}, and the metric's are {own}.")
        if theirs is None and extractor.frechet != "fid":
            raise UserError(
                f"{self.path} does not say what network its features are of, which is then the FID Inception network, and the metric's is "
                f"{extractor.name}: say metric=fid, or make the file by python -m diffusion.evaluate reference=IMAGES out=FILE.npz."
            )
        if layer == "features" and found.mean.numel() != extractor.dim:
            raise UserError(f"{self.path} is of {found.mean.numel()} features and {extractor.name} has {extractor.dim}: choose its metric.")
        device = "cpu" if extractor.device.type == "mps" else extractor.device  # Apple's GPU has no float64
        return Gaussian(found.mean.to(device), found.cov.to(device), found.n)


def reference_gaussian(imageset: RealImages | Statistics, extractor: Extractor, cache: str | Path, layer: str) -> Fitted:
    """The Gaussian of the real images' features: what a file says, or `reference_moments`."""
    if isinstance(imageset, Statistics):
        return imageset.gaussian(extractor, layer)
    return reference_moments(imageset, extractor, cache, layer)


def read_statistics(path: Path, pictures: RealImages | None = None) -> Statistics:
    """The statistics in an npz. Raises UserError for a file that is damaged, or holds something else; nothing in it is executed."""
    with reading(path), ZipFile(path):  # np.load takes other kinds of files too
        archive = np.load(path, allow_pickle=False)
        arrays = {name: archive[name] for name in (*sum(KEYS.values(), ()), *SAID) if name in archive}
        there = list(archive)
    if not {"mu", "sigma"} <= arrays.keys():
        raise UserError(f"{path} holds {', '.join(there) or 'nothing'}, and statistics are the arrays mu and sigma.")
    said = {name: arrays[name].item() for name in SAID if name in arrays and arrays[name].ndim == 0}
    made_by = said if all(isinstance(said.get(name), kind) for name, kind in SAID.items()) and said["n"] > 1 else {}
    gaussians = {
        layer: gaussian_of(path, arrays[mean], arrays[cov], made_by.get("n"))
        for layer, (mean, cov) in KEYS.items()
        if mean in arrays and cov in arrays
    }
    # Of ours the data's own: numbers that are another machine's by rounding are of the same data.
    digest = made_by.get("data_sha256") or hashlib.sha256(path.read_bytes()).hexdigest()
    return Statistics(path, digest, gaussians, made_by, pictures, made_by.get("split", UNKNOWN))


def is_ours(path: Path) -> bool:
    """Whether a file holds statistics that `write_statistics` wrote, and nothing else."""
    with suppress(UserError):
        return set(headers(path)) - {name for pair in KEYS.values() for name in pair} == set(SAID)
    return False


def gaussian_of(path: Path, mean: np.ndarray, cov: np.ndarray, n: int | None) -> Gaussian:
    """The Gaussian of these arrays. Raises UserError for what is no mean and covariance."""
    numbers = mean.dtype.kind == cov.dtype.kind == "f" and mean.ndim == 1 and cov.shape == (len(mean), len(mean))
    numbers = numbers and bool((cov.diagonal() >= 0).all())
    if not numbers or not (np.isfinite(mean).all() and np.isfinite(cov).all()) or not np.allclose(cov, cov.T, rtol=1e-3, atol=1e-6):
        raise UserError(f"{path} holds no mean [d] and symmetric covariance [d, d] of finite numbers: mu {mean.shape}, sigma {cov.shape}.")
    return Gaussian(torch.from_numpy(mean.astype(np.float64)), torch.from_numpy(cov.astype(np.float64)), n)


def write_statistics(path: Path, gaussians: Mapping[str, Fitted], extractor: Extractor, imageset: RealImages) -> None:
    """Write an npz that pytorch-fid, EDM and guided-diffusion read too, with what made it; whole or not at all.

    Raises UserError for a layer that no such file holds."""
    if foreign := [layer for layer in gaussians if layer not in KEYS]:
        raise UserError(f"A file of statistics holds {' and '.join(KEYS)}, and not {foreign[0]}: choose another metric.")
    pairs = [zip(KEYS[layer], (fit.mean, fit.cov), strict=True) for layer, fit in gaussians.items()]
    arrays = {name: tensor.cpu().numpy() for pair in pairs for name, tensor in pair}
    n = next(iter(gaussians.values())).n
    said = (n, extractor.name, extractor.weights_hash, imageset.name, imageset.split, imageset.sha256, code_version())
    with atomic(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, **arrays, **dict(zip(SAID, map(np.array, said), strict=True)))
