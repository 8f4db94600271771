"""What a reader of others' weights makes: a model in our words, of which a run's folder, or a folder in another format, is written."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from diffusion.model import Model, assemble, network_of, variance_of
from diffusion.support.build import build, review
from diffusion.support.errors import UserError

# What a run says of itself beside its model. Nothing is known of how others trained, and nothing of this changes an image.
USUAL: Mapping[str, Any] = {
    "task": {"_target_": "diffusion.denoiser.Denoiser"},
    "sampler": {"_target_": "diffusion.samplers.DDPM", "variance": "auto"},
    "grid": {"_target_": "diffusion.grids.Trailing", "steps": 1000},
    "guidance": {
        "cfg": {"_target_": "diffusion.guidance.ClassifierFree", "scale": 1.0, "negative": None},
        "clip": {"_target_": "diffusion.guidance.Clip"},
    },
    "samplers": {},
    "metric": {},
    "ema": {},
    "batch_size": 1,
    "accumulate": 1,
    "sample_batch_size": 64,
    "precision": "32-true",
    "matmul_precision": "high",
}
OBJECTIVES = {
    False: {"_target_": "diffusion.objectives.Simple"},
    True: {"_target_": "diffusion.objectives.Hybrid", "weight": 0.001},
}


@dataclass(frozen=True)
class Converted:
    """A model of others in our words.

    config: a run's resolved configuration, see `configured`.
    weights: the tensors of our network, by the names of its `state_dict`.
    origin: plain data about where it is from: `file`, its `sha256`, `layout`, and `notes`, a sentence for each thing that is otherwise."""

    config: Mapping[str, Any]
    weights: Mapping[str, Tensor]
    origin: Mapping[str, Any]

    def model(self) -> Model:
        """The model with its weights, in evaluation mode. Raises ValueError or UserError for a configuration that makes none, and UserError
        for weights that are not those of its network, naming some."""
        for group in ("sampler", "grid", "guidance"):  # which the model itself is made without
            review(self.config[group], group)
        with torch.random.fork_rng(devices=[]):
            model = assemble(self.config)
        network = model.denoiser.network
        own = {name: tensor.shape for name, tensor in network.state_dict().items()}
        missing, more = sorted(own.keys() - self.weights.keys()), sorted(self.weights.keys() - own.keys())
        other = [name for name in sorted(own.keys() & self.weights.keys()) if own[name] != self.weights[name].shape]
        if missing or more or other:
            found = {"lacks": missing, "has no place for": more, "has another shape of": other}
            said = "; it ".join(f"{what} {', '.join(names[:3])}" for what, names in found.items() if names)
            raise UserError(f"The weights of {self.origin.get('file')} are not those of the network that its settings describe: it {said}.")
        network.load_state_dict(dict(self.weights))
        model.denoiser.eval().requires_grad_(False)
        return model


def empty_network(config: Mapping[str, Any]) -> Any:
    """The network of a configuration on the device "meta": the names and the shapes of its tensors, and no memory for them."""
    codec, conditions = build(config["codec"], "codec"), build(config["conditions"], "conditions")
    learned = variance_of(config["objective"])["learned_variance"]
    with torch.device("meta"):
        return network_of(config["network"], codec, conditions, learned)


@dataclass(frozen=True)
class Elsewhere:
    """The data set of a model that was trained elsewhere: a name, and no items."""

    name: str

    def load(self) -> Any:
        """Raises UserError: what it was trained on is not here."""
        raise UserError(f"{self.name} was trained elsewhere, on images that are not named here: say reference=cifar10, or what it was.")


def configured(
    network: Mapping[str, Any],
    data_shape: Sequence[int],
    ways: Mapping[str, Any],
    *,
    name: str,
    num_classes: int = 0,
    null_class: bool = False,
    learned_variance: bool = False,
) -> dict[str, Any]:
    """A run's resolved configuration of a model in pixels from -1 to 1.

    network: the group `network` of a configuration, without what `assemble` tells it (channels of images, their size, classes).
    data_shape: (height, width, channels) of its pictures.
    ways: the groups `schedule` and `parameterization`, and those of USUAL, of `codec` and of `objective` that are otherwise than usual.
    name: of the model, for sentences.
    num_classes, null_class: of how many classes it is told, and whether "no class" is one that it has learned.
    learned_variance: whether its output has twice the channels."""
    conditions = {"_target_": "diffusion.conditions.Classes", "num_classes": num_classes, "null_class": null_class}
    return {
        **USUAL,
        "dataset": {"_target_": "diffusion.foreign.converted.Elsewhere", "name": name},
        "codec": {"_target_": "diffusion.codecs.Pixels", "data_shape": list(data_shape)},
        "conditions": conditions if num_classes else {"_target_": "diffusion.conditions.Unconditional"},
        "network": dict(network),
        "objective": OBJECTIVES[learned_variance],
        **ways,
    }
