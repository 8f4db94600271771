"""Models in other libraries' formats: Stable Diffusion folders and autoencoders as diffusers writes them.

Their networks are diffusers' and transformers' own classes behind adapters; schedules, samplers, grids and guidance are ours. Such a folder
is data: its files choose among the classes that are named here, nothing in it is imported, and weights are read from safetensors alone.
diffusers and transformers are imported when a folder is read (the extra `diffusers`)."""

from diffusion.foreign.text import CLIP, T5

__all__ = ["CLIP", "T5"]
