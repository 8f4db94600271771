"""The classifier of noisy images: its parts, what it learns, what it refuses."""

import pytest
import torch

from diffusion.classifier import CrossEntropy, NoisyClassifier
from diffusion.networks import Encoder, UNet
from diffusion.schedules import Cosine


def encoder(classes=3, **settings):
    shape = {"in_channels": 1, "image_size": 8, "channels": 8, "multipliers": [1, 2], "res_blocks": 1, "attention": [4]} | settings
    return Encoder(UNet(**shape), classes)


@pytest.mark.parametrize("settings", [{}, {"scale_shift": False}, {"resample_in_resblock": True}, {"attention": [8, 4]}])
def test_logits_from_any_u_net(settings):
    network = encoder(**settings)
    assert network(torch.randn(5, 1, 8, 8), torch.arange(5.0)).shape == (5, 3)
    assert not any(name.startswith(("up", "classes")) for name, _ in network.named_parameters())


def test_it_learns_and_knows_less_of_noisier_images():
    """Three flat images: after 60 steps nearly all are told apart at low noise, and a third at pure noise."""
    torch.manual_seed(0)
    classifier, objective = NoisyClassifier(encoder(), Cosine()), CrossEntropy()
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
    low, high = (losses(torch.full((128,), t, dtype=torch.float64))["accuracy"].mean() for t in (0.1, 1.0))
    assert low > 0.95
    assert high < 0.6


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
