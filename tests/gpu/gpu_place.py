"""A kind of device, and what is asked of it."""

import gc
from contextlib import nullcontext

import torch
from composing import TINY, composed
from pretended import a_gpu_without_waiting

from diffusion.training.run import train


class Place:
    """A kind of device: `name` is cpu or cuda. What only a GPU can show is nothing on a CPU, so that the tests are the same."""

    def __init__(self, name):
        self.name, self.real = name, name == "cuda"

    def words(self, folder, *words):
        """The configuration of a tiny run there; TINY's network is the default one."""
        tiny = [word for word in TINY if not (word.startswith("network.") and any(other.startswith("network=") for other in words))]
        place = [f"trainer.accelerator={self.name}", f"paths.cache={folder / 'cache'}", "matmul_precision=highest"]
        return composed(*tiny, *place, *words)

    def train(self, folder, name, *words):
        """The last numbers of a tiny run."""
        return train(self.words(folder, *words), folder / name)

    def must_not_wait(self, on=True):
        """From now on torch raises an error where the host would wait for the GPU, or no longer does."""
        if self.real:
            torch.cuda.set_sync_debug_mode("error" if on else "default")

    def without_waiting(self):
        return a_gpu_without_waiting() if self.real else nullcontext()

    def held(self):
        """Bytes of the tensors that are alive, of a GPU as its allocator counts them."""
        gc.collect()
        if self.real:
            return torch.cuda.memory_allocated()
        storages = [thing.untyped_storage() for thing in gc.get_objects() if type(thing) in (torch.Tensor, torch.nn.Parameter)]
        return sum({storage._cdata: storage.nbytes() for storage in storages}.values())


def saved(folder):
    """The weights of a run's last checkpoint."""
    return torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True, map_location="cpu")["state_dict"]


def same(one, other):
    one, other = saved(one), saved(other)
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def apart(found, expected):
    """||found - expected|| / ||expected||."""
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())
