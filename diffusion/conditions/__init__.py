"""Conditions: what a model can be asked for.

A condition is a tensor whose first dimension is the batch. Only an object of this package knows what kinds there are, which of them image
number i is asked for, how words typed on the command line are read, and what the null condition is.
"""

from diffusion.conditions.classes import Classes, Unconditional
from diffusion.conditions.originals import Originals
from diffusion.conditions.text import Text, TextEncoder
from diffusion.conditions.tokens import Bytes, Words

__all__ = ["Bytes", "Classes", "Originals", "Text", "TextEncoder", "Unconditional", "Words"]
