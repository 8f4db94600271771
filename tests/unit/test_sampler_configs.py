"""Every sampler and grid is a word on the command line, and a sampler's word brings the grid that its authors use."""

from pathlib import Path

import pytest
import torch
from composing import composed, way

from diffusion import grids, samplers
from diffusion.denoiser import Estimate
from diffusion.samplers import last
from diffusion.schedules import Linear
from diffusion.support.build import build

CONF = Path(__file__).resolve().parents[2] / "conf"
GRIDS = {
    "ddim": grids.Trailing,
    "ddim_inversion": grids.Linspace,
    "deis": grids.LogSNR,
    "dpm2": grids.Karras,
    "dpm_adaptive": grids.LogSNR,
    "dpm_solver": grids.LogSNR,
    "dpm_solver_pp": grids.LogSNR,
    "dpmpp_2m": grids.Karras,
    "dpmpp_3m": grids.Karras,
    "dpm2_a": grids.Karras,
    "dpmpp_2m_sde": grids.Karras,
    "dpmpp_2s_a": grids.Karras,
    "dpmpp_3m_sde": grids.Exponential,
    "dpmpp_sde": grids.Karras,
    "edm": grids.EDM,
    "euler": grids.Karras,
    "euler_a": grids.Karras,
    "heun": grids.Karras,
    "ipndm": grids.Leading,
    "langevin": grids.Exponential,
    "lms": grids.Karras,
    "plms": grids.Leading,
    "pndm": grids.Leading,
    "rk45": grids.LogSNR,
    "unipc": grids.LogSNR,
}


@pytest.fixture(scope="module")
def run():
    """A run's own way: ddpm, on the grid that is the default."""
    return composed()


@pytest.fixture
def made(run):
    """`made(name, *overrides)`: sampler and grid as the command takes them, of sample.py for the run."""

    def build_both(name, *overrides):
        config = composed(*overrides) if name == "train" else way(run, *overrides, name=name)
        return [build(config[key], key) for key in ("sampler", "grid")]

    return build_both


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("sampler", GRIDS)
def test_brings_its_grid(made, sampler, name):
    built, grid = made(name, f"sampler={sampler}")
    assert type(grid) is GRIDS[sampler]
    for state in built(Point(), torch.ones(1, 2), grid(Linear()), torch.zeros_like):
        assert state.x.isfinite().all()


@pytest.mark.parametrize("name", ["train", "sample", "evaluate"])
@pytest.mark.parametrize("sampler", ["heun", "ddim"])
def test_the_command_line_wins(made, sampler, name):
    for overrides in ([f"sampler={sampler}", "grid=quadratic"], ["grid=quadratic", f"sampler={sampler}"]):
        grid = made(name, *overrides, "grid.steps=7")[1]
        assert grid == grids.Quadratic(7)


def files(group):
    """The group's own, beside that for a class of the user's."""
    return [path for path in sorted((CONF / group).glob("*.yaml")) if path.stem != "custom"]


@pytest.mark.parametrize("path", files("sampler"), ids=lambda path: path.stem)
def test_every_sampler_composes(made, path):
    built = made("sample", f"sampler={path.stem}")[0]
    assert callable(built)
    assert type(built).__module__.startswith("diffusion.samplers")


@pytest.mark.parametrize("path", files("grid"), ids=lambda path: path.stem)
def test_every_grid_composes(made, path):
    grid = made("train", f"grid={path.stem}")[1]
    times = grid(Linear())
    assert len(times) == grid.steps + 1
    assert times[-1] == 0


@pytest.mark.parametrize("name", [name for name in samplers.__all__ if name not in ("State", "last")])
def test_every_sampler_has_a_word(name):
    assert any(f"_target_: diffusion.samplers.{name}\n" in path.read_text() + "\n" for path in (CONF / "sampler").glob("*.yaml"))


class Point:
    """The denoiser of a single data point at 0, on the linear schedule."""

    schedule = Linear()

    def __call__(self, x, t):
        return Estimate(torch.zeros_like(x), x / self.schedule(t)[1])


def test_the_stand_in_is_solved_exactly(made):
    sampler, grid = made("sample", "sampler=unipc")
    assert last(sampler(Point(), torch.ones(1, 2), grid(Linear()))).x.abs().max() < 1e-6


def test_a_data_set_brings_a_sampler_to_its_training_and_to_no_run_s_evaluation():
    """dataset=digits brings DDPM in 25 steps; a sampler that is named takes its place, and a run keeps its own."""
    assert (composed()["sampler"]["_target_"], composed()["grid"]["steps"]) == ("diffusion.samplers.DDPM", 25)
    assert composed("sampler=edm")["grid"]["steps"] == 18 and composed("sampler=ddpm")["grid"]["steps"] == 50
    other = composed("sampler=ddim", "grid.steps=7")
    own = way(other, "dataset=digits", name="evaluate")
    assert (own["sampler"], own["grid"]) == (other["sampler"], other["grid"])
