"""What the words of a command ask a model for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from diffusion.conditions.rows import Repeated, numbered_texts
from diffusion.support.errors import UserError
from diffusion.typing import Conditions, Rows


class Wish(NamedTuple):
    """The conditions [n, ...] of n images, or None, and the texts that they are asked for, one for each, if it is by texts."""

    cond: Rows | None
    names: list[str] | None


def wish(conditions: Conditions, numbers: Tensor, said: Mapping[str, Any]) -> Wish:
    """What images with these numbers [n] are asked for, each thing in turn: what is `said` by one of the keys classes, prompt (a text) and
    prompts (a file of texts), or, where all are None, what the model's own grids ask for.

    Raises UserError for two of them, a class of a model that is asked by texts, and the reverse."""
    given = {key: value for key, value in said.items() if value is not None}
    if len(given) > 1:
        raise UserError(f"{' and '.join(given)} each say what to ask for: say one of them.")
    if not given:
        names = conditions.names(numbers)
        return Wish(conditions.ask(numbers), None) if names is None else wished(conditions, names)
    ((key, value),) = given.items()
    if key == "classes":
        chosen = conditions.parse(value, key)
        return Wish(chosen[numbers % len(chosen)], None)
    require_texts(conditions, key, value)
    texts = [value] if key == "prompt" else texts_in(value)
    return wished(conditions, [texts[i % len(texts)] for i in numbers.tolist()], key)


def wished(conditions: Conditions, names: list[str], key: str = "the condition") -> Wish:
    """These texts, a text for each image."""
    distinct, number = numbered_texts(names)
    return Wish(Repeated(conditions.parse(distinct, key), number), names)


def require_texts(conditions: Conditions, key: str, value: Any) -> None:
    """Raises UserError for a text that is said to a model without a condition, or to one that is asked for classes, of which "7" is one."""
    if not conditions.given:
        conditions.parse(value, key)
    if most := conditions.num_classes:
        raise UserError(f"{key}={value} is a text, and this model is asked for classes, the numbers 0 to {most - 1}: say classes=[0].")


def texts_in(file: str) -> list[str]:
    """The lines of a file of texts, without those that are blank. Raises UserError if there are none."""
    try:
        lines = [line for line in Path(file).read_text(encoding="utf-8-sig").split("\n") if line.strip()]
    except (OSError, ValueError) as error:
        reason = "its content is not text in UTF-8" if isinstance(error, ValueError) else error.strerror
        raise UserError(f"prompts={file} cannot be read ({reason}): say a file of texts, one in a line.") from error
    if not lines:
        raise UserError(f"prompts={file} is empty: write a text into each line.")
    return lines
