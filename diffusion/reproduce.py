"""python -m diffusion.reproduce FILE[:LINE] [KEY=VALUE ...] — make again what a file holds, by the words that it says made it, and compare.

FILE is a folder of sample.py or its recipe.json, an npz or zip of it, a picture (PNG), or a file of lines (metrics.jsonl), of which one by
its number, from 1. The run is the one in whose folder FILE lies. KEY=VALUE takes the place of a word that the file says, as ckpt=runs/NAME.

  python -m diffusion.reproduce runs/a/samples/FOLDER
  python -m diffusion.reproduce runs/a/metrics.jsonl:40

Exit code 0 if all was reproduced, 1 if not. A file's words are data: those that name trust, classes, or places elsewhere are refused.
"""

import argparse
import importlib.util
import logging
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from diffusion.composing import composed_of, composing
from diffusion.evaluation import EXACT
from diffusion.harmless import harmless, require_known_classes
from diffusion.mistyped import CONF
from diffusion.shell import begin
from diffusion.support.errors import UserError
from diffusion.support.progress import loading

if TYPE_CHECKING:
    from diffusion.evaluation.made import Thing


def run_around(path: Path) -> Path | None:
    """The folder of the run that a file lies in."""
    folders = path.resolve().parents
    return next((folder for folder in folders if (folder / "config.yaml").is_file() and (folder / "checkpoints").is_dir()), None)


def words_again(thing: "Thing", typed: Sequence[str]) -> list[str]:
    """The words to run: those that the file says, of which those that the user types take the place; of a checkpoint the one of the run
    around the file. Raises UserError as `harmless`, where there is no run, and where the words, put over the run's configuration, build
    what a file may not."""
    from diffusion.checkpoint import find, read_config

    run, keys = run_around(thing.path), {key_of(word) for word in typed}
    said = [word for word in thing.words if key_of(word) not in keys]
    subject = [word.partition("=")[2] for word in said if key_of(word) == "ckpt"][-1:]
    words = harmless([word for word in said if key_of(word) != "ckpt"], run or thing.path.resolve().parent)
    if subject and subject[0] != EXACT:
        if run is None:
            raise UserError(f"{thing.path} lies in no run's folder: say which run it is of, as ckpt=runs/NAME.")
        file = run / "checkpoints" / Path(subject[0]).name
        subject = [str(file if file.suffix == ".ckpt" and file.is_file() else run)]
    words += [*(f"ckpt={one}" for one in subject), *map(with_whole_path, typed)]
    ckpt = next((word.partition("=")[2] for word in reversed(words) if word.startswith("ckpt=")), EXACT)
    require_known_classes(words, thing.program, None if ckpt == EXACT else read_config(find(ckpt)[0]))
    return words


def key_of(word: str) -> str:
    """The key of KEY=VALUE."""
    return word.partition("=")[0].lstrip("+~")


def with_whole_path(word: str) -> str:
    """A word that the user typed, in which a path is whole."""
    key, equals, value = word.partition("=")
    return f"{key}={os.path.abspath(value)}" if equals and os.path.exists(value) else word


def sampled_again(words: Sequence[str], place: Path, cache: Path) -> Path:
    """The folder of this call of sample.py, at `place`."""
    cfg, typed = composed_of([*words, f"paths.cache={cache}", f"out={place / 'again'}"], "sample")
    spec = importlib.util.spec_from_file_location("sample_again", CONF.parent / "sample.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with begin(trust=cfg.trust, places=[place, cache]):
        module.sample(cfg, typed)
    return place / "again"


def measured_again(words: Sequence[str], place: Path, cache: Path) -> list[dict]:
    """The lines of this call of `diffusion.evaluate`, which lie at `place`."""
    from diffusion.evaluate import measured_cell
    from diffusion.evaluation.rows import read_cells

    out, paths = place / "again.jsonl", {"data": Path("data").resolve(), "cache": cache, "runs": place}
    own = [*(f"paths.{key}={path}" for key, path in paths.items()), "keep_features=0", f"out={out}"]
    cfg, typed = composed_of([*words, *own])
    with begin(trust=cfg.trust, places=[place, cache]):
        measured_cell(cfg, typed)
    return read_cells(out)


def require_as_many(thing: "Thing", words: Sequence[str]) -> None:
    """Raises UserError where the words make another number of images than lie in the file, or in the folder of a picture: a file may ask
    for any."""
    from diffusion.album import RECORD
    from diffusion.conditions.asking import texts_in
    from diffusion.evaluation.made import DAMAGED, count_in

    cfg, _ = composed_of(words, "sample")
    asked = cfg.n or (len(texts_in(cfg.prompts)) if cfg.prompts is not None else None)
    there = count_in(thing.path.with_name(RECORD) if thing.name else thing.path)
    if there is None and not thing.name:
        raise UserError(f"{thing.path} holds no images: {DAMAGED}")
    if None not in (asked, there) and asked != there:
        raise UserError(f"{thing.path}: its words make {asked:,} images, and there are {there:,}: {DAMAGED}")


def images_compared(thing: "Thing", made: Path) -> tuple[bool, str]:
    """(whether the images of a file, or its picture, are those of the folder that was made again, the sentence)."""
    from diffusion.evaluation.again import images_apart, verdict
    from diffusion.evaluation.made import images_in, levels_of, recipe_of

    if thing.name:
        again = made / thing.name
        if not again.is_file():
            raise UserError(f"{thing.path}: its words make no picture {thing.name}.")
        close = images_apart(levels_of(thing.path), levels_of(again))
    elif thing.path.suffix.lower() == ".zip":
        pictures = sorted(made.glob("[0-9]*.png"))
        import numpy as np

        close = images_apart(images_in(thing.path), np.stack([levels_of(picture) for picture in pictures]))
    else:
        close = images_apart(images_in(thing.path), images_in(made / "recipe.json"))
    reproduced, sentence = verdict(thing.said, recipe_of(made / "recipe.json"), close)
    return reproduced, f"{thing.path}: {sentence}"


def numbers_compared(thing: "Thing", made: Sequence[dict]) -> list[tuple[bool, str]]:
    """(whether a number of a line is the one that was measured again, the sentence), for each."""
    from diffusion.evaluation.again import numbers_apart, verdict

    metric, way = thing.said["metric"].partition("/")[0], thing.said.get("way", "sampler")
    lines = [line for line in made if line["metric"] == metric and line["way"] == way]
    if not lines:
        raise UserError(f"{thing.path}{thing.label}: its words measure no {metric} again.")
    line, found = lines[-1], []
    if line["step"] != thing.said.get("step"):
        raise UserError(f"{thing.path}{thing.label}: no checkpoint of step {thing.said.get('step')} is kept, but one of {line['step']}.")
    again = {**line, **{key: line["passport"].get(key) for key in ("code", "device", "weights")}}
    for key in line.get("numbers", [metric]):
        before = thing.said.get(key if "cell" in thing.said else key.replace(metric, thing.said["metric"], 1))
        number = before if isinstance(before, int | float | None) else None
        reproduced, sentence = verdict(thing.said, again, numbers_apart(number, line[key]))
        found.append((reproduced, f"{thing.path}{thing.label} {key}: {sentence}"))
    return found


def made_again(things: Sequence["Thing"], typed: Sequence[str]) -> list[tuple[bool, str]]:
    """(whether a thing was reproduced, the sentence), for each; of several that one command made, it is run once."""
    cache, found = Path("data/cache").resolve(), list[tuple[bool, str]]()
    calls = [(thing, words_again(thing, typed)) for thing in things]  # all is refused before anything runs
    for thing, words in calls:
        if thing.program == "sample" and "n" not in map(key_of, typed):
            require_as_many(thing, words)
    with TemporaryDirectory() as folder:
        done: dict[tuple[str, ...], tuple[Path, Any]] = {}
        for thing, words in calls:
            run = sampled_again if thing.program == "sample" else measured_again
            if (call := (thing.program, *words)) not in done:
                place = Path(folder).resolve() / str(len(done))
                place.mkdir()
                done[call] = place, run(words, place, cache)
            place, made = done[call]
            if thing.program == "sample":
                found.append(images_compared(thing, made))
            elif thing.name:
                found.append(drawn_compared(thing, place))
            else:
                found += numbers_compared(thing, made)
    return found


def drawn_compared(thing: "Thing", place: Path) -> tuple[bool, str]:
    """The same for a picture that a metric draws, whose name ends alike."""
    from diffusion.evaluation.again import images_apart, verdict
    from diffusion.evaluation.made import levels_of

    made = [path for path in place.glob("again-*.png") if thing.name.endswith(path.name.removeprefix("again"))]
    if not made:
        raise UserError(f"{thing.path}: its words draw no picture of that name.")
    reproduced, sentence = verdict(thing.said, {}, images_apart(levels_of(thing.path), levels_of(made[0])))
    return reproduced, f"{thing.path}: {sentence}"


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m diffusion.reproduce", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", metavar="FILE[:LINE]", help="what was made, or a line of numbers")
    parser.add_argument("words", nargs="*", metavar="LINE|KEY=VALUE", help="the line's number, or a word in the place of the file's")
    given = parser.parse_args()
    found = None if os.path.exists(given.file) else re.fullmatch(r"(.+):(\d{1,12})", given.file, re.S)
    path, lines = found[1] if found else given.file, [word for word in given.words if word.isdecimal()]
    with composing():
        logging.getLogger().setLevel(logging.WARNING)
        typed = [word for word in given.words if not word.isdecimal()]
        if strange := [word for word in typed if "=" not in word]:
            raise UserError(f"{strange[0]} is not the number of a line, and not KEY=VALUE.")
        with loading("torch"):
            from diffusion.evaluation.made import made_things
        line = int(lines[0]) if lines else int(found[2]) if found else None
        results = made_again(made_things(Path(path), line), typed)
        for _, sentence in results:
            print(sentence)
        sys.exit(0 if all(reproduced for reproduced, _ in results) else 1)


if __name__ == "__main__":
    main()
