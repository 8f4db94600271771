"""Models in other libraries' formats: pixel models, Stable Diffusion and autoencoders in diffusers' folders, and files of weights as others
publish them.

The networks of pixel models become ours, weight by weight; those of Stable Diffusion are diffusers' and transformers' own classes behind
adapters. Schedules, samplers, grids and guidance are ours. Such a folder is data: its files choose among the classes that are named here,
nothing in it is imported, and no weights are read that would run as a program.
diffusers and transformers are imported when a folder is read (the extra `diffusers`)."""

from diffusion.foreign.text import CLIP, T5

__all__ = ["CLIP", "T5"]
