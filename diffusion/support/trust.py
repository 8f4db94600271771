"""What a run's files may build: a run that came from elsewhere is data, and reading it must not run code that it brings or names.

`build` imports whatever a `_target_` names, `os.system` among it; `vet` is asked first. It imports modules of this package and the
namespaces listed here, and nothing else.
"""

import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import date
from importlib import import_module
from typing import Any

from diffusion.support.errors import UserError

OURS = "diffusion"
FUNCTIONS = (
    "diffusion.checkpoint.classifier",
    "diffusion.checkpoint.denoiser",
    "diffusion.classifier.of_unet",
    "diffusion.editing.autoencode",
    "diffusion.editing.interpolate",
    "diffusion.latents.codec",
)  # of this package, which may be built beside its classes
NAMESPACES = ("torch.nn", "torch.optim", "torchvision.transforms", "torchvision.transforms.v2")  # classes found in one and defined below it
CLASSES = (
    "pytorch_lightning.Trainer",
    *(f"pytorch_lightning.loggers.{name}Logger" for name in ("CSV", "MLFlow", "TensorBoard", "Wandb")),
)  # the words in their settings (strategy, accelerator, plugins) name what Lightning has registered, and never a module
FUNCTION, TORCHSCRIPT = (f"diffusion.metrics.extractors.foreign.{name}" for name in ("Function", "TorchScript"))
RESOLVERS = ("basename", "oc.select", "out_channels", "run_dir", "run_name", "started")  # of conf/, which only see the configuration
HYDRA = ("runtime.output_dir", "runtime.choices.", "job.num")  # what conf/ asks of ${hydra:...}

DOTTED = re.compile(r"[A-Za-z]\w*(\.[A-Za-z]\w*)*", re.ASCII)  # no empty part, and none that begins with an underscore
CALL = re.compile(r"\$\{\s*([^\s:}$]*)\s*([:}]?)\s*([^},$]*)")  # ${name} or ${name:argument; any other ${ has an empty second group
DEPTH, VALUES, CHARACTERS = 60, 100_000, 2_000_000  # of any configuration; those of this repository have 7, 500 and 10,000
PLAIN = (str, int, float, bytes, date, type(None))

SAID: ContextVar[tuple[str, ...]] = ContextVar("trusted packages", default=())
Path = tuple["Path", object] | None  # the keys from the innermost out


def vet(config: Any, trust: str | Sequence[str] | None = (), where: str = "the configuration") -> None:
    """Raises UserError for the first `_target_` in plain data that `build` should not build.

    Built are: classes defined in this package and its FUNCTIONS; the classes of NAMESPACES and CLASSES; and all of a package, or of a
    module of one, that `trust` names ("my_package", "my_package.sub"). The extractor Function needs trust in the package of its
    `weights`, and TorchScript, whose file is a program, the word "torchscript" in `trust`. Packages named by an enclosing `trusting` are
    trusted too. `where` is the file, for the message."""
    trust = (*packages(trust), *SAID.get())
    for path, node in _walk(config, where):
        if not isinstance(node, dict) or "_target_" not in node:
            continue
        target = node["_target_"]
        say = f"{where}: {_key((path, '_target_'))}={_shown(target)}"
        if not _named(target):
            raise UserError(f"{say} is not the name of a class; write it as package.Class.")
        if _trusted(target, trust):
            continue
        found = None if target in (*FUNCTIONS, *CLASSES) else _class(target, say)
        if target.endswith(".WandbLogger") and "settings" in node:
            raise UserError(f"{say} has settings, which may send the account's key to another server; remove them.")
        if found == TORCHSCRIPT and "torchscript" not in trust:
            raise UserError(f"{say} reads a TorchScript file, which is a program: if you trust that file, say trust=torchscript.")
        if found == FUNCTION:
            _vet_function(node.get("weights"), trust, f"{where}: {_key((path, 'weights'))}={_shown(node.get('weights'))}")


@contextmanager
def trusting(trust: str | Sequence[str] | None) -> Iterator[None]:
    """Within the context these packages are trusted, also by the runs that a run refers to."""
    before = SAID.set((*SAID.get(), *packages(trust)))
    try:
        yield
    finally:
        SAID.reset(before)


def vet_source(source: Any, where: str = "source.yaml") -> None:
    """Raises UserError for the first value of a file's text, or of plain data, whose `${...}` is more than a reference to another key.

    OmegaConf resolves such values, and its own resolvers read the environment; only RESOLVERS and what HYDRA lists are let through."""
    for path, node in _walk(parsed(source, where) if isinstance(source, str) else source, where):
        if isinstance(node, str) and "${" in node and (bad := _call(node)):
            raise UserError(f"{where}: {_key(path)} asks for {_shown(bad)}, which reads more than this file; write its value in its place.")


def parsed(text: str, where: str = "the configuration") -> Any:
    """The plain data of a YAML text that anyone may have written.

    Raises UserError for a text that is not YAML, nests too deep, is too long, or repeats parts of itself by aliases, by which a few
    lines grow without bound."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # ten times as fast; its recursion is safe once the depth is known
    depth, ends = 0, (yaml.SequenceEndEvent, yaml.MappingEndEvent)
    try:
        if len(text) > CHARACTERS:
            raise UserError(f"{where} has {len(text)} characters, which no run's file has; is it the right file?")
        for event in yaml.parse(text, Loader=loader):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, ends)
            if depth > DEPTH:
                raise UserError(f"{where} nests more than {DEPTH} deep, which no run's file does; is it the right file?")
            if isinstance(event, yaml.AliasEvent):
                raise UserError(f"{where} has the alias *{event.anchor:.40}; write out what it stands for.")
        return yaml.load(text, Loader=loader)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: text that looks like a date or a number and is neither
        reason = str(error).splitlines()[0][:100]
        raise UserError(f"{where} is not a file of plain YAML ({reason}); it is damaged or of another kind.") from None


def packages(trust: str | Iterable[str] | None) -> tuple[str, ...]:
    """The packages named in `trust`. Raises UserError for what cannot be a package's name."""
    names = tuple(trust or ()) if isinstance(trust, Iterable | None) and not isinstance(trust, str) else (trust,)
    for name in names:
        if not _named(name):
            raise UserError(f"trust={_shown(name)} is not the name of a package; say trust=my_package, or trust=[my_package,another].")
    return names


def _named(name: object) -> bool:
    return isinstance(name, str) and len(name) < 200 and DOTTED.fullmatch(name) is not None


def _trusted(name: str, trust: Iterable[str]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in trust)


def _class(target: str, say: str) -> str:
    """The full name of the class that `target` names, looked up as `build` does."""
    module, _, name = target.rpartition(".")
    root = module.partition(".")[0]
    if root != OURS and module not in NAMESPACES:
        raise UserError(f"{say} is not among the classes that a run's file may build; {_remedy(target)}.")
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{say} cannot be imported ({error}); was the run made by another version?") from None
    home = OURS if root == OURS else module
    if not inspect.isclass(found) or not found.__module__.startswith(f"{home}."):
        raise UserError(f"{say} is not a class of {home}'s own; {_remedy(target)}.")
    return f"{found.__module__}.{found.__qualname__}"


def _vet_function(weights: object, trust: Iterable[str], say: str) -> None:
    module, _, name = weights.partition(":") if isinstance(weights, str) else ("", "", "")
    if not _named(module) or not name:
        raise UserError(f"{say} names no function; write it as package.module:function.")
    if not _trusted(module, trust):
        raise UserError(f"{say} is a function from outside this package; {_remedy(module)}.")


def _remedy(name: str) -> str:
    """Trust is offered for packages that may be the user's own."""
    root = name.partition(".")[0]
    if root in sys.stdlib_module_names or root in (OURS, "numpy", "pytorch_lightning", "torch", "torchvision"):
        return "it could be used to harm you, so do not use this run before you have looked at the file"
    return f"if the code is yours, or you have read it, say trust={root}"


def _call(value: str) -> str:
    """The first `${...}` of a value that is more than a reference or a resolver of ours, or an empty string."""
    for start in (found.start() for found in re.finditer(r"\$\{", value)):
        found = CALL.match(value, start)
        name, end, argument = found.groups() if found else ("", "", "")
        ours = name in RESOLVERS or (name == "hydra" and argument.startswith(HYDRA))
        if not end or (end == ":" and not ours):
            return value[start:]
    return ""


def _walk(data: Any, where: str) -> Iterator[tuple[Path, Any]]:
    """Every value of plain data with its path, in order and without recursion.

    Raises UserError for more than any configuration has, shared parts counted each time, and for values that are not plain."""
    waiting: list[tuple[Path, Any, int]] = [(None, data, 0)]
    seen = 0
    while waiting:
        path, node, depth = waiting.pop()
        yield path, node
        if isinstance(node, PLAIN):
            continue
        if not isinstance(node, dict | list | tuple | set):
            raise UserError(f"{where}: {_key(path)} is a {type(node).__name__}, where plain data is needed.")
        seen += len(node)
        if depth >= DEPTH or seen > VALUES:
            much = f"nests more than {DEPTH} deep" if depth >= DEPTH else f"holds more than {VALUES} values"
            raise UserError(f"{where} {much}, which no run's file does; is it the right file?")
        inner = list(node.items() if isinstance(node, dict) else enumerate(node))
        waiting += [((path, name), value, depth + 1) for name, value in reversed(inner)]


def _key(path: Path) -> str:
    """The path as it is typed on the command line, callbacks[0].every, or its last part if it is long."""
    names = []
    while path is not None:
        path, name = path
        word = isinstance(name, str) and name.isprintable()
        names.append(f".{name:.100}" if word else f"[{_shown(name)}]")
    return "".join(reversed(names)).lstrip(".")[-300:] or "its content"


def _shown(value: object) -> str:
    """A value for a message: a word or a small number as it is written, and the type of anything else, whose repr may be endless."""
    small = isinstance(value, str | bool | type(None)) or (isinstance(value, int) and abs(value) < 10**9)
    return repr(value[:100] if isinstance(value, str) else value) if small else f"a {type(value).__name__}"
