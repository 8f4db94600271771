"""Every experiment makes two steps on a GPU, in its own precision; tests/test_configs.py has them make these on a CPU."""

import pytest
from experiments import shrunk
from test_configs import CHOICES

from diffusion.training.run import train


@pytest.mark.cuda
@pytest.mark.parametrize("choice", [choice for group, choice in CHOICES if group == "experiment"])
def test_experiments_train_on_a_gpu(choice, tmp_path):
    train(shrunk(choice, tmp_path / "cache", "trainer.accelerator=cuda"), tmp_path / "run")
    assert (tmp_path / "run/checkpoints/last.ckpt").exists()
