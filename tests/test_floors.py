"""The floors of the house: an import goes down, never up, and the lower six need torch alone."""

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Every file and package of diffusion/, by floor. A new one is listed here; where it belongs is a decision, not a default.
FLOORS = {
    0: ["support"],
    1: ["typing"],
    2: ["networks", "noise", "parameterization", "schedules"],
    3: ["classifier", "denoiser", "posterior"],
    4: ["grids", "guidance", "likelihood", "objectives", "oracles", "reconstruction", "samplers", "times", "weightings"],
    5: ["codecs", "conditions"],
    6: ["album", "dashboard", "data", "editing", "generate", "metrics", "npz", "part", "passport", "pictures", "published", "shards"],
    7: ["checkpoint", "foreign", "latents", "model"],
    8: ["evaluation", "training"],
    9: [
        "attribute",
        "average",
        "compare",
        "composing",
        "config",
        "convert",
        "diagnose",
        "diff",
        "evaluate",
        "harmless",
        "manual",
        "mistyped",
        "pareto",
        "reproduce",
        "schemas",
        "shell",
        "sweeps",
    ],
}
FLOOR = {name: floor for floor, names in FLOORS.items() for name in names}
# The bound's terms are the objective's and the ODE's solver the sampler's; pairs are pictures;
# an edit is a recipe whose sampler is another, an album what a recipe made; the dashboard draws what papers measured; a file's picture is
# read for edits as for data sets; a checkpoint's weights go into an assembled model, and a folder in another format is loaded as a run's
# is, of which a codec may be made; a training measures as evaluate does.
MAY_READ = {
    "likelihood": {"objectives", "samplers"},
    "objectives": {"weightings"},
    "metrics": {"npz", "passport", "pictures"},
    "album": {"generate", "part", "pictures"},
    "dashboard": {"published"},
    "data": {"npz", "pictures"},
    "editing": {"generate", "pictures"},
    "checkpoint": {"foreign", "model"},
    "foreign": {"model"},
    "latents": {"checkpoint", "foreign", "model"},
    "training": {"evaluation"},
}
HYDRA = {"hydra", "omegaconf"}
LIGHTNING = {"pytorch_lightning", "lightning"}
MAY_USE_LIGHTNING = ("training/", "data/module.py")
FILES = {path.relative_to(ROOT).as_posix(): path for path in sorted((ROOT / "diffusion").rglob("*.py"))}
SCRIPTS = {
    name: ROOT / name for name in ("train.py", "sample.py", "hydra_plugins/diffusion_optuna.py", "hydra_plugins/diffusion_submitit.py")
}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and ast.unparse(node.test).split(".")[-1] == "TYPE_CHECKING"


def walk(node: ast.AST):
    """Every node, those inside functions too, but for what only a type checker reads."""
    for child in ast.iter_child_nodes(node):
        if not is_type_checking(child):
            yield child
            yield from walk(child)


def imports(path: Path) -> set[str]:
    """The dotted names that a file imports; `from a import b` is a.b where that is a module of ours, and a otherwise."""
    found = set()
    for node in walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import, which hides where it goes"
            found |= {name if file_of(name := f"{node.module}.{alias.name}") else node.module for alias in node.names}
    return found


def file_of(module: str) -> str | None:
    """The file of a module of ours: diffusion.a.b -> diffusion/a/b.py or diffusion/a/b/__init__.py."""
    base = module.replace(".", "/")
    return next((file for file in (f"{base}.py", f"{base}/__init__.py") if file in FILES), None)


def unit(file: str) -> str:
    """The entry of the table that a file belongs to: diffusion/samplers/base.py -> samplers."""
    return Path(file).parts[1].removesuffix(".py")


INNER = [file for file in FILES if file != "diffusion/__init__.py"]
LIBRARY = [file for file in INNER if FLOOR.get(unit(file), 0) in range(6)]  # torch and the standard library
GRAPH = {file: {target for name in imports(path) if (target := file_of(name))} for file, path in (FILES | SCRIPTS).items()}
OUTER = {file: {name.split(".")[0] for name in imports(path)} - sys.stdlib_module_names for file, path in (FILES | SCRIPTS).items()}


def test_every_file_has_its_floor():
    assert {unit(file) for file in INNER} == FLOOR.keys()
    assert GRAPH["diffusion/__init__.py"] == set() == OUTER["diffusion/__init__.py"]


@pytest.mark.parametrize("file", INNER)
def test_an_import_goes_down(file):
    """To a lower floor or within one's own package; on floor 9, the commands, and where MAY_READ says so, to a
    neighbour too."""
    mine = unit(file)
    for target in GRAPH[file]:
        theirs = unit(target)
        beside = FLOOR[theirs] == FLOOR[mine] and (FLOOR[mine] == 9 or theirs in MAY_READ.get(mine, ()))
        assert theirs == mine or FLOOR[theirs] < FLOOR[mine] or beside, f"{file} imports {target}"


def test_no_two_files_import_each_other():
    """Nor in a circle."""
    try:
        TopologicalSorter(GRAPH).prepare()
    except CycleError as error:
        pytest.fail(" imports ".join(reversed(error.args[1])))


# Imported inside the one function that needs it: the quantile of a beta distribution; a bar; the text of a run's file.
ASKED_FOR = {"diffusion/grids.py": {"scipy"}, "diffusion/support/progress.py": {"tqdm"}, "diffusion/support/trust.py": {"yaml"}}


@pytest.mark.parametrize("file", LIBRARY)
def test_the_library_needs_torch_alone(file):
    assert OUTER[file] - ASKED_FOR.get(file, set()) <= {"torch", "diffusion"}


@pytest.mark.parametrize("file", [*INNER, *SCRIPTS])
def test_hydra_and_lightning_live_in_their_places(file):
    assert (
        file in SCRIPTS
        or unit(file) in ("config", "composing", "compare", "mistyped", "schemas", "shell", "evaluate", "sweeps")
        or not OUTER[file] & HYDRA
    )
    assert file.removeprefix("diffusion/").startswith(MAY_USE_LIGHTNING) or not OUTER[file] & LIGHTNING


def test_every_allowance_is_needed():
    used = {mine: {unit(target) for file in INNER if unit(file) == mine for target in GRAPH[file]} for mine in MAY_READ}
    assert all(allowed <= used[mine] for mine, allowed in MAY_READ.items())
    assert all(any(OUTER[file] & LIGHTNING for file in FILES if file.startswith(f"diffusion/{place}")) for place in MAY_USE_LIGHTNING)


def test_sampling_a_run_reaches_no_lightning_no_metric_and_no_training():
    """By whatever way sample.py's imports go."""
    reached, waiting = set(), {"sample.py"}
    while waiting:
        file = waiting.pop()
        reached.add(file)
        packages = {f"{folder.as_posix()}/__init__.py" for folder in Path(file).parents if f"{folder.as_posix()}/__init__.py" in FILES}
        waiting |= (GRAPH[file] | packages) - reached
    assert {"diffusion/checkpoint.py", "diffusion/generate.py"} <= reached
    used = {file for file in reached if OUTER[file] & (LIGHTNING | {"torchmetrics"}) or file.startswith("diffusion/training/")}
    assert not used


def test_networks_know_no_schedule():
    for file in INNER:
        if unit(file) == "networks":
            assert {unit(target) for target in GRAPH[file]} <= {"networks", "typing", "support"}


def test_the_library_works_where_nothing_else_is_installed():
    """In a fresh interpreter whose import of anything heavier fails, every file of floors 0 to 5 loads, and DDIM draws a sample."""
    modules = [file.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for file in LIBRARY]
    script = f"""
import sys
for name in ("pytorch_lightning", "lightning", "hydra", "omegaconf", "torchvision", "torchmetrics", "sklearn", "PIL", "wandb", "diffusers"):
    sys.modules[name] = None
import torch
from diffusion.samplers import DDIM
for module in {modules!r}:
    __import__(module)
from diffusion.grids import Trailing
from diffusion.oracles import GaussianMixture
from diffusion.samplers import last
data = GaussianMixture(torch.tensor([[0.25]]), torch.tensor([0.0]))
x = last(DDIM()(data, torch.randn(3, 1, dtype=torch.float64), Trailing(5)(data.schedule))).x
print("sampled", x.flatten().tolist())
"""
    run = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "sampled [0.25, 0.25, 0.25]"
