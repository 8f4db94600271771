"""Measuring: the distance of images from end to end, against torch-fidelity's, and what each metric takes beside the features.

Both networks are torch-fidelity's Inception with one set of random weights, fed the same uint8 images, in batches. End to end is from these
to the number: the features, their moments (ours in float64, with the features of the sFID on the way), and the Fréchet distance to
statistics that are known; without our standard error, which is ten distances more and which torch-fidelity has not. A metric's own time is
from the features of all images to its numbers, in the groups of conf/metric that errors come from."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from diffusion import metrics
from diffusion.metrics import Features, InceptionV3

from ..harness import OURS, Ratio, Row, Side, missing
from ..work import Bench

GROUPS = 10  # as conf/metric has them
METRICS: dict[str, Callable[..., Any]] = {
    "fid": partial(metrics.FrechetDistance, groups=GROUPS),
    "sfid": partial(metrics.SpatialFrechetDistance, groups=GROUPS),
    "kid": partial(metrics.KernelDistance, groups=GROUPS),
    "inception_score": partial(metrics.InceptionScore, groups=GROUPS),
    "precision_recall": metrics.PrecisionRecall,
    "density_coverage": metrics.DensityCoverage,
}
OF_IMAGES: dict[str, Callable[..., Any]] = {
    "memorization": lambda n, cache: metrics.Memorization(metrics.Pixels(), n, cache, GROUPS),
    "sliced_wasserstein": lambda n, cache: metrics.SlicedWasserstein(n),
}


def rows(bench: Bench) -> list[Row]:
    """The distance from end to end, and the metrics' shares."""
    study, n = Study(bench), bench.sizes.features
    goal = {"cpu": ">= 1", "cuda": ">= 1"}
    ends = (Side(OURS, partial(whole, study), needed=True), Side("torch-fidelity", partial(their_whole, study)))
    distance = Ratio("torch-fidelity / ours", "torch-fidelity", OURS, goal)
    sides = [Side("features", partial(features, study), needed=True), Side("torch-fidelity", partial(their_features, study))]
    sides += [Side(name, partial(own, study, name)) for name in (*METRICS, *OF_IMAGES)]
    few = {"cpu": "<= 0.1", "cuda": "<= 0.1"}
    shares = [Ratio(f"{name} / features", name, "features", few) for name in (*METRICS, *OF_IMAGES)]
    faster = Ratio("torch-fidelity's features / ours", "torch-fidelity", "features", goal)
    return [
        Row("distance", f"the Fréchet distance of {n} images, end to end", "s/image", ends, (distance,)),
        Row("metrics", f"features of {n} images, and what each metric takes from there", "s/image", tuple(sides), (faster, *shares), 2),
    ]


@dataclass(frozen=True)
class Real:
    """A data set of noise, as a metric asks for one."""

    images: np.ndarray
    labels: None = None
    name: str = "benchmark"
    split: str = "train"
    sha256: str = "0" * 64


@dataclass(frozen=True)
class Study:
    """The images, and the networks with one set of weights; nothing is made before it is used."""

    bench: Bench

    @cached_property
    def images(self) -> torch.Tensor:
        """uint8 [n, h, w, 3] on the CPU."""
        size = self.bench.sizes.image_size
        return torch.randint(0, 256, (self.bench.sizes.features, size, size, 3), dtype=torch.uint8)

    @cached_property
    def real(self) -> Real:
        """Half as many, of which the references are made."""
        size = self.bench.sizes.image_size
        return Real(np.random.default_rng(0).integers(0, 256, (self.bench.sizes.features // 2, size, size, 3), dtype=np.uint8))

    @cached_property
    def weights(self) -> Path:
        """A file of random weights, made without the download that torch-fidelity's constructor insists on."""
        with missing("torch-fidelity"):
            from torch_fidelity import feature_extractor_inceptionv3 as fidelity

        path, kind = self.bench.folder / "inception.pth", fidelity.FeatureExtractorInceptionV3
        download, load = fidelity.load_state_dict_from_url, kind.load_state_dict
        fidelity.load_state_dict_from_url, kind.load_state_dict = (lambda *args, **kwargs: None), (lambda self, state: None)
        try:
            torch.save(kind("random", ["2048"]).state_dict(), path)
        finally:
            fidelity.load_state_dict_from_url, kind.load_state_dict = download, load
        return path

    @cached_property
    def extractor(self) -> InceptionV3:
        """Ours."""
        return InceptionV3(self.weights, cache=self.bench.folder)

    @cached_property
    def theirs(self) -> Any:
        """torch-fidelity's, of which the pooled features alone are asked."""
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

        network = FeatureExtractorInceptionV3("peer", ["2048"], feature_extractor_weights_path=str(self.weights))
        return network.to(self.bench.device).eval()

    @cached_property
    def kept(self) -> list[dict[str, torch.Tensor]]:
        """The layers of all batches by our network."""
        return [self.extractor.outputs(batch) for batch in self.batches()]

    def batches(self) -> tuple[torch.Tensor, ...]:
        """The images, some at a time."""
        return self.images.split(self.bench.sizes.feature_batch)

    def metric(self, make: Callable[..., Any]) -> Any:
        """A metric of these images, set up."""
        metric = make(self.extractor, self.bench.sizes.features, self.bench.folder)
        metric.setup(self.real, self.bench.device)
        return metric

    def pooled(self) -> torch.Tensor:
        """torch-fidelity's features [n, 2048] on the CPU, as it collects them."""
        with torch.no_grad():
            return torch.cat([self.theirs(b.permute(0, 3, 1, 2).to(self.bench.device))[0].cpu() for b in self.batches()])

    def each(self, work: Callable[[], object]) -> float:
        """Seconds for an image."""
        return self.bench.seconds(work) / len(self.images)


@contextmanager
def whole(study: Study, side: Side) -> Iterator[Callable[[], float]]:
    """Our distance from images to number."""
    metric = study.metric(metrics.FrechetDistance)

    def work() -> None:
        metric.reset()
        for batch in study.batches():
            metric.update(batch)
        side.facts["number"] = metric.numbers()[metric.name]

    metric.update(study.batches()[0])
    side.facts["threads"] = torch.get_num_threads()
    yield lambda: study.each(work)


@contextmanager
def their_whole(study: Study, side: Side) -> Iterator[Callable[[], float]]:
    """torch-fidelity's, by its own functions."""
    with missing("torch-fidelity"):
        from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric

    with torch.no_grad():
        images = torch.from_numpy(study.real.images).permute(0, 3, 1, 2).split(study.bench.sizes.feature_batch)
        real = fid_features_to_statistics(torch.cat([study.theirs(b.to(study.bench.device))[0].cpu() for b in images]))

    def work() -> None:
        made = fid_features_to_statistics(study.pooled())
        side.facts["number"] = float(next(iter(fid_statistics_to_metric(made, real, False).values())))

    yield lambda: study.each(work)


@contextmanager
def features(study: Study, side: Side) -> Iterator[Callable[[], float]]:
    """Our network alone; the metrics after it use what it made."""
    study.extractor.to(study.bench.device)
    study.extractor.outputs(study.batches()[0])
    side.facts["threads"] = torch.get_num_threads()

    def work() -> None:
        for batch in study.batches():
            study.extractor.outputs(batch)

    yield lambda: study.each(work)


@contextmanager
def their_features(study: Study, side: Side) -> Iterator[Callable[[], float]]:
    """torch-fidelity's network alone."""
    with torch.no_grad():
        study.theirs(study.batches()[0].permute(0, 3, 1, 2).to(study.bench.device))
    yield lambda: study.each(study.pooled)


@contextmanager
def own(study: Study, name: str, side: Side) -> Iterator[Callable[[], float]]:
    """A metric's own time, from the features, or from the images for one that looks at pixels."""
    n, cache = len(study.images), study.bench.folder
    if name in OF_IMAGES:
        metric, given = OF_IMAGES[name](n, cache), study.batches()
        metric.setup(study.real, study.bench.device)
    else:
        small = {"subset_size": min(1000, n // 2)} if name == "kid" else {}
        metric = study.metric(partial(METRICS[name], **small))
        given = tuple(Features(layers) for layers in study.kept)

    def work() -> None:
        metric.reset()
        for batch in given:
            metric.update(batch)
        metric.numbers()

    yield lambda: study.each(work)
