"""What is said of a published network in the words of its authors' scripts: `--num_channels 128 --learn_sigma True`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from diffusion.support.errors import UserError, did_you_mean

TRUTHS = {"yes": True, "true": True, "t": True, "y": True, "1": True, "no": False, "false": False, "f": False, "n": False, "0": False}


@dataclass(frozen=True)
class Flags:
    """Flags by name, a dash as good as an underscore: `flags["num_heads"]` is what was said, or the usual value, of that value's type.

    A flag is only trusted where the tensors are silent: `agree` compares it with what they say.

    said: what the command line said.
    usual: every flag that there is, with the value that the authors' scripts give it; None for one that has to be said, a number.
    of: whose flags they are, for sentences.

    Raises UserError for a flag that there is not, and a value of another type than the usual one."""

    said: Mapping[str, str]
    usual: Mapping[str, Any]
    of: str

    def __post_init__(self) -> None:
        said = {name.lstrip("-").replace("-", "_"): value for name, value in self.said.items()}
        object.__setattr__(self, "said", said)
        for name in said:
            if name not in self.usual:
                hint = did_you_mean(name, self.usual, "--")
                raise UserError(
                    f"--{name} is none of the flags by which {self.of} describes a network{hint}; those are {', '.join(self.usual)}."
                )
            self[name]

    def __getitem__(self, name: str) -> Any:
        usual = self.usual[name]
        if name not in self.said:
            if usual is None:
                raise UserError(f"The tensors do not say --{name}, and {self.of} has no usual one: say it, as the authors' command does.")
            return usual
        word, kind = self.said[name], int if usual is None else type(usual)
        if kind is bool and word.lower() in TRUTHS:
            return TRUTHS[word.lower()]
        try:
            return str(word) if kind is str else {int: int, float: float}[kind](word)
        except (KeyError, ValueError):
            what = {bool: "True or False", int: "a whole number", float: "a number"}[kind]
            raise UserError(f"--{name} {word} should be {what}.") from None

    def agree(self, name: str, found: Any, said: Any = None) -> None:
        """Raises UserError if the flag was said and is not what the tensors say, `found`; `said` is its value, read as `found` is."""
        if name in self.said and (self[name] if said is None else said) != found:
            raise UserError(
                f"--{name} {self.said[name]} contradicts the tensors, which say {spelled_flag(found)}; leave it out, or take another file."
            )

    def assumed(self, *names: str) -> list[str]:
        """A sentence for each of these flags, of which the tensors are silent, that was not said."""
        silent = [name for name in names if name not in self.said]
        return [f"--{name} was not said; taken as {spelled_flag(self[name])}, the usual value of {self.of}." for name in silent]


def spelled_flag(value: Any) -> str:
    """A value as a flag has it: (16, 8) is 16,8."""
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value) or "nothing"


def numbers_in(flag: str, word: str) -> tuple[float, ...]:
    """The numbers of a flag's list: "1,2,2" -> (1, 2, 2). Raises UserError for another word."""
    try:
        return tuple(int(number) if float(number).is_integer() else float(number) for number in word.split(","))
    except ValueError:
        raise UserError(f"--{flag} {word} should be numbers with commas between them, such as 1,2,2.") from None
