"""The classifier of noisy images: its parts, what it learns, what it refuses."""

import pytest
import torch

from diffusion.classifier import CrossEntropy, NoisyClassifier
from diffusion.generate import generate
from diffusion.grids import Trailing
from diffusion.guidance import Classifier, Unconditional
from diffusion.networks import Encoder, UNet
from diffusion.oracles import EmpiricalDistribution
from diffusion.samplers import DDIM
from diffusion.schedules import EDM, VE, Cosine


def encoder(classes=3, **settings):
    shape = {"in_channels": 1, "image_size": 8, "channels": 8, "multipliers": [1, 2], "res_blocks": 1, "attention": [4]} | settings
    return Encoder(UNet(**shape), classes)


@pytest.mark.parametrize("settings", [{}, {"scale_shift": False}, {"resample_in_resblock": True}, {"attention": [8, 4]}])
def test_logits_from_any_u_net(settings):
    network = encoder(**settings)
    assert network(torch.randn(5, 1, 8, 8), torch.arange(5.0)).shape == (5, 3)
    assert not any(name.startswith(("up", "classes")) for name, _ in network.named_parameters())


def learned(schedule):
    """A classifier of three flat images after 60 steps, and a function: its losses at a time for each of 128 images."""
    torch.manual_seed(0)
    classifier, objective = NoisyClassifier(encoder(), schedule), CrossEntropy()
    optimizer = torch.optim.Adam(classifier.parameters(), 3e-3)

    def losses(t):
        labels = torch.randint(0, 3, (128,))
        x0 = (labels - 1.0).reshape(-1, 1, 1, 1).expand(-1, 1, 8, 8)
        return objective(classifier, x0, t, torch.randn(128, 1, 8, 8), labels)

    for _ in range(60):
        loss = losses(torch.rand(128).double().clamp(min=0.01))["loss"].mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return classifier, losses


@pytest.mark.parametrize("schedule", [Cosine(), VE(), EDM()], ids=repr)
def test_it_learns_and_knows_less_of_noisier_images(schedule):
    """Nearly all are told apart at low noise, and a third at pure noise."""
    _, losses = learned(schedule)
    low, high = (losses(torch.full((128,), t, dtype=torch.float64))["accuracy"].mean() for t in (0.1, 1.0))
    assert low > 0.95
    assert high < 0.6


@pytest.mark.parametrize("schedule", [VE(), EDM()], ids=repr)
def test_the_network_sees_an_exploding_path_at_the_size_of_its_noise(schedule):
    """x / sqrt(1 + sigma^2), with sigma up to 80."""
    seen = []
    classifier = NoisyClassifier(lambda x, label: seen.append(x) or x.mean((2, 3)), schedule)
    t = torch.tensor([0.1, 0.5, 1.0], dtype=torch.float64)
    sigma = schedule(t)[1].reshape(-1, 1, 1, 1)
    x = torch.ones(3, 1, 8, 8, dtype=torch.float64) * sigma
    classifier(x, schedule.label(t).float())
    torch.testing.assert_close(seen[0], sigma / (1 + sigma**2).sqrt() * torch.ones_like(x), rtol=1e-5, atol=0)


def test_it_guides_on_an_exploding_path():
    """Of images -1, 0 and 1, one comes out by its number where the classifier guides an unconditional model."""
    classifier, _ = learned(VE())
    flat = torch.tensor([-1.0, 0.0, 1.0]).reshape(3, 1, 1, 1).expand(3, 1, 8, 8)
    guided = Classifier(Unconditional(EmpiricalDistribution(flat, VE())), classifier, scale=3.0)
    cond = torch.arange(3).repeat(8)
    images = generate(guided, DDIM(), Trailing(20), (1, 8, 8), range(24), cond)
    assert ((images.float().mean((1, 2, 3)) / 127.5).round() == cond).float().mean() > 0.9


def test_it_takes_double_precision_and_gives_a_gradient():
    classifier = NoisyClassifier(encoder(), Cosine())
    torch.nn.init.normal_(classifier.network.out.weight)
    x = torch.randn(2, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    logits = classifier(x, torch.tensor([3.0, 500.0]))
    assert logits.dtype == torch.float64
    assert torch.autograd.grad(logits.sum(), x)[0].abs().sum() > 0


def test_classes_are_needed():
    with pytest.raises(ValueError, match="at least two classes"):
        encoder(classes=0)
    with pytest.raises(ValueError, match="data set with classes"):
        CrossEntropy()(NoisyClassifier(encoder(), Cosine()), torch.zeros(1, 1, 8, 8), torch.ones(1), torch.zeros(1, 1, 8, 8))
