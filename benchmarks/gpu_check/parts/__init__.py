"""The parts, in their order: cheap and decisive first."""

from benchmarks.gpu_check.parts.bench import Bench
from benchmarks.gpu_check.parts.distance import Distances
from benchmarks.gpu_check.parts.tests import Pytest
from benchmarks.gpu_check.parts.training import Training

PARTS = (Pytest(), Bench(), Training(), Distances())
