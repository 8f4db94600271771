"""Guidance by texts against the truth: x_0 given a text is normal around a vector that the text says, and its score is known."""

import pytest
import torch
from torch.distributions import Categorical, Independent, MixtureSameFamily, Normal

from diffusion.codecs import Standardised
from diffusion.conditions import Text, TextEncoder
from diffusion.denoiser import Denoiser
from diffusion.grids import Trailing
from diffusion.guidance import ClassifierFree, Unconditional
from diffusion.model import Model
from diffusion.oracles import GaussianMixture
from diffusion.parameterization import X0
from diffusion.samplers import DDIM
from diffusion.schedules import Cosine

SCHEDULE = Cosine()
TEXTS = ["-1 0.5", "2 1", "0 -1.5"]
MEANS = torch.tensor([[float(n) for n in text.split()] for text in TEXTS], dtype=torch.float64)
STDS, WEIGHTS = torch.tensor([0.3, 0.5, 0.4], dtype=torch.float64), torch.tensor([0.5, 0.2, 0.3], dtype=torch.float64)


class Vectors(TextEncoder):
    """Frozen: a text of two numbers is two vectors, of which the second is 1; the empty text's are 0."""

    channels, pooled = 2, False

    def encode(self, texts):
        rows = [[[float(n) for n in text.split()], [1.0, 1.0]] if text else [[0.0, 0.0]] * 2 for text in texts]
        return torch.tensor(rows, dtype=torch.float64)


class Exact(torch.nn.Module):
    """In the place of a trained network that looks at a context: E[x_0 | x_t, cond]."""

    context_channels = 2

    def __init__(self, oracle):
        super().__init__()
        self.oracle = oracle

    def forward(self, x, label, cond):
        return self.oracle(x, (label.double() + 1) / SCHEDULE.num_timesteps, cond).x0


@pytest.fixture
def model():
    text = Text(Vectors(), prompts=TEXTS)
    oracle = GaussianMixture(MEANS, STDS, WEIGHTS, SCHEDULE, classes=text.parse(TEXTS), null=text.nothing)
    denoiser = Denoiser(text.around(Exact(oracle)), SCHEDULE, X0())
    return Model(denoiser, Standardised([2], [0.0, 0.0], [1.0, 1.0]), text)


def score(x, t, texts):
    """grad log p(x_t | text), by torch.distributions and autograd; of all the texts together for the empty one."""
    alpha, sigma = SCHEDULE(t)
    x = x.clone().requires_grad_()
    spread = (alpha**2 * STDS**2 + sigma**2).sqrt()[:, None].expand(-1, 2)
    each = Independent(Normal(alpha * MEANS, spread), 1)
    mixture, alone = MixtureSameFamily(Categorical(WEIGHTS), each), each.log_prob(x[:, None])
    of = [mixture.log_prob(x[i]) if text == "" else alone[i, TEXTS.index(text)] for i, text in enumerate(texts)]
    return torch.autograd.grad(torch.stack(of).sum(), x)[0]


@pytest.mark.parametrize("t", [0.05, 0.5, 0.95])
@pytest.mark.parametrize("negative", [None, "2 1"])
@pytest.mark.parametrize("scale", [0.0, 1.0, 4.0])
def test_guidance_is_the_guided_score(model, scale, negative, t):
    """eps = -sigma (s_other + scale (s(c) - s_other)) (document 000, eq. 10 to 12), other the empty text's or the negative one's, in a
    batch of different texts, one of them empty."""
    t = torch.tensor(t, dtype=torch.float64)
    asked = [*TEXTS, "", TEXTS[0]]
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    guided = ClassifierFree(model.denoiser, scale, negative, model.conditions)
    other = score(x, t, [negative or ""] * 5)
    want = -SCHEDULE(t)[1] * (other + scale * (score(x, t, asked) - other))
    torch.testing.assert_close(guided(x, t, model.conditions.parse(asked)).eps, want, rtol=1e-9, atol=1e-9)


def test_without_a_text_is_the_empty_one(model):
    t, x = torch.tensor(0.4, dtype=torch.float64), torch.randn(3, 2, dtype=torch.float64)
    want = -SCHEDULE(t)[1] * score(x, t, [""] * 3)
    torch.testing.assert_close(model.denoiser(x, t).eps, want, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(Unconditional(model.denoiser)(x, t, model.conditions.parse(TEXTS)).eps, want, rtol=1e-9, atol=1e-9)


def test_samples_are_of_their_texts(model):
    """Each of many images of each text lies where the text says: its mean within 4 standard errors."""
    recipe = model.recipe(DDIM(), Trailing(60), [])
    made = recipe(range(900), model.conditions.ask(torch.arange(900))).images.double()
    for i in range(3):
        error = (made[i::3].mean(0) - MEANS[i]).abs().max()
        assert error < 4 * STDS[i] / 300**0.5 + 0.02  # and what 60 steps leave
