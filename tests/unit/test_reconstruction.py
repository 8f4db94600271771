"""The loss of autoencoders and its discriminator, by hand and against torchmetrics; an autoencoder in a denoiser's place."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from diffusion.codecs import Pixels, Standardised
from diffusion.conditions import Originals
from diffusion.editing import beside, edited
from diffusion.generate import Recipe
from diffusion.grids import Trailing
from diffusion.metrics import LPIPS, PSNR, SSIM
from diffusion.metrics.perceptual import lpips_network
from diffusion.networks import KLAutoencoder, UNet
from diffusion.networks.autoencoder import Autoencoded
from diffusion.networks.discriminator import PatchDiscriminator
from diffusion.reconstruction import Adversary, Autoencoding, LearnedScale, Reconstruction
from diffusion.samplers import DDIM
from diffusion.schedules import Cosine
from diffusion.support.errors import UserError
from diffusion.training.adversary import Opponent

X, MADE = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
KL = torch.tensor([3.0, 5.0, 7.0], dtype=torch.float64)


def autoencoding(size=(8, 8, 1), channels=8):
    torch.manual_seed(0)
    network = KLAutoencoder(size[2], size[:2], channels, [1, 2], latent_channels=2)
    with torch.no_grad():
        network.last.weight.mul_(3)
    return Autoencoding(network, Cosine(), Pixels(size)).eval()


@pytest.mark.parametrize("power, distribution", [(1, torch.distributions.Laplace), (2, None)])
def test_the_reconstruction_is_a_likelihood(power, distribution):
    """L1 over e^s + s is -log p of a Laplace distribution of scale e^s, less log 2 for each element; L2 that of a Gaussian's exponent."""
    s = 0.3
    losses = Reconstruction(power=power, kl=0.25)(X, Autoencoded(MADE, {"kl": KL}), s)
    if distribution:
        expected = -(distribution(MADE, math.exp(s)).log_prob(X) + math.log(2)).sum((1, 2, 3))
    else:
        variance = math.exp(s) / 2
        expected = -(torch.distributions.Normal(MADE, variance**0.5).log_prob(X)).sum((1, 2, 3)) + 16 * (
            s - math.log(2 * math.pi * variance) / 2
        )
    torch.testing.assert_close(losses["reconstruction"], expected)
    torch.testing.assert_close(losses["loss"], expected + 0.25 * KL)


def test_the_perceptual_distance_counts_at_every_element():
    losses = Reconstruction(w=0.5, perceptual=lambda x, y: KL)(X, Autoencoded(MADE, {}))
    torch.testing.assert_close(losses["loss"], (X - MADE).abs().sum((1, 2, 3)) + 16 * 0.5 * KL)
    with pytest.raises(ValueError, match=r"objective.w=0.5 weighs a perceptual distance, and objective.perceptual is none"):
        Reconstruction(w=0.5)


def test_the_learned_scale_finds_the_mean_error():
    """d/ds [sum |x - x'| / e^s + s d] = 0 at e^s = mean |x - x'|."""
    objective = LearnedScale(Reconstruction()).double()
    optimizer = torch.optim.LBFGS(objective.parameters(), max_iter=50)

    def closure():
        optimizer.zero_grad()
        loss = objective(X, Autoencoded(MADE, {}))["loss"].mean()
        loss.backward()
        return loss

    optimizer.step(closure)
    assert objective.s.exp().item() == pytest.approx((X - MADE).abs().mean().item(), rel=1e-5)


def opponent(weight=0.7, channels=4):
    torch.manual_seed(1)
    return Opponent(Adversary(weight, 0, channels), 1, [8, 8])


def test_the_adaptive_weight_on_a_linear_decoder():
    """x' = z W: both gradients at W are z^T (dL/dx'), which autograd is not asked for here."""
    rival, z = opponent(), torch.randn(5, 3)
    last, x = nn.Parameter(torch.randn(3, 64)), torch.randn(5, 64)
    x_hat = z @ last
    term, weight = rival.term(x_hat.reshape(5, 1, 8, 8), (x - x_hat).abs().sum(1).mean(), last)
    rec = z.T @ (x_hat - x).sign() / 5
    pictures = x_hat.detach().reshape(5, 1, 8, 8)
    patches, slope, step = rival.network(pictures)[0].numel(), torch.zeros(5, 64), 1e-4
    exact = copy.deepcopy(rival.network).double()
    for i in range(64):  # central differences of -D at each pixel, of all pictures at once
        moved = torch.zeros(64, dtype=torch.float64).index_fill_(0, torch.tensor([i]), step).reshape(1, 1, 8, 8)
        with torch.no_grad():
            slope[:, i] = (exact(pictures.double() - moved) - exact(pictures.double() + moved)).flatten(1).sum(1) / (2 * step)
    adversarial = z.T @ slope / (5 * patches)
    expected = 0.7 * rec.norm() / (adversarial.norm() + 1e-4)
    torch.testing.assert_close(weight, expected.detach(), rtol=1e-4, atol=0)
    torch.testing.assert_close(term, weight * -rival.network(pictures).mean())
    assert not weight.requires_grad and all(parameter.grad is None for parameter in rival.network.parameters())
    term.backward()
    assert last.grad is not None and all(parameter.grad is None for parameter in rival.network.parameters())


def test_the_discriminator_learns_by_hinges():
    """Half of each; pictures beyond the margin give no gradient; two halves of a batch are the batch."""
    rival, x, y = opponent(), torch.randn(4, 1, 8, 8), torch.randn(4, 1, 8, 8).requires_grad_()
    loss = rival.learn(x, y)
    with torch.no_grad():
        real, made = rival.network(x), rival.network(y)
    torch.testing.assert_close(loss, ((1 - real).clamp(min=0).mean() + (1 + made).clamp(min=0).mean()) / 2)
    assert y.grad is None
    whole = [parameter.grad.clone() for parameter in rival.network.parameters()]
    rival.optimizer.zero_grad()
    for rows in (slice(2), slice(2, 4)):
        rival.learn(x[rows], y[rows], parts=2)
    torch.testing.assert_close([parameter.grad for parameter in rival.network.parameters()], whole)
    rival.step(1e-2)
    assert all(parameter.grad is None for parameter in rival.network.parameters())
    assert rival.learn(x, y) < loss


def test_the_discriminator_looks_at_each_picture_by_itself():
    network, x = PatchDiscriminator(1, 28, 4), torch.randn(3, 1, 28, 28)
    assert network(x).shape == (3, 1, 1, 1) and PatchDiscriminator(3, 64, 4)(torch.randn(1, 3, 64, 64)).shape == (1, 1, 6, 6)
    torch.testing.assert_close(network(x)[1:2], network(x[1:2]))
    with pytest.raises(ValueError, match="layers=2 needs pictures of at least 12 pixels: these have 8"):
        PatchDiscriminator(1, 8, 4, layers=2)


@pytest.mark.slow
def test_lpips_is_that_of_torchmetrics(tmp_path):
    """With the same backbone, given by a file in the form of torchvision's; grey pictures are taken three times."""
    torch.manual_seed(3)
    own = lpips_network("random", torch.device("cpu"))
    torch.save(
        {f"features.{name.partition('.')[2]}": p + 0.1 * p.std() * torch.randn_like(p) for name, p in own.net.state_dict().items()},
        tmp_path / "vgg16.pth",
    )
    x, y = torch.rand(2, 2, 3, 32, 32) * 2 - 1
    found = LPIPS(str(tmp_path / "vgg16.pth"))
    network = lpips_network(found.weights, torch.device("cpu"))
    each = [network(a[None], b[None]).item() for a, b in zip(x, y, strict=True)]
    assert found(x, y).tolist() == pytest.approx(each) and LPIPS("random")(x, y).tolist() != pytest.approx(each)
    torch.testing.assert_close(found(x[:, :1], y[:, :1]), found(x[:, :1].expand(-1, 3, -1, -1), y[:, :1].expand(-1, 3, -1, -1)))
    leaf = y.requires_grad_()
    found(x, leaf).sum().backward()
    assert leaf.grad.abs().sum() > 0 and all(p.grad is None for p in network.parameters())


def test_lpips_without_its_weights(tmp_path):
    x = torch.zeros(1, 1, 16, 16)
    torch.save({"features.0.weight": torch.zeros(1)}, tmp_path / "other")
    (tmp_path / "text").write_text("no tensors")
    for weights, said in (
        (None, "say objective.perceptual.weights=PATH"),
        ("no", "There is no file"),
        ("text", "not a file of plain tensors"),
    ):
        with pytest.raises(UserError, match=said):
            LPIPS(weights and str(tmp_path / weights))(x, x)
    with pytest.raises(UserError, match=r"of 16 pixels or more, and these have 8: say objective.w=0"):
        LPIPS("random")(x[..., :8, :8], x[..., :8, :8])


def recipe(pictures, size=(8, 8, 1)):
    model = autoencoding(size)
    codec = Pixels(size)
    return Recipe(model, DDIM(), Trailing(1), codec.shape, codec, Originals(shown=pictures), batch_size=3, model=model)


def test_a_recipe_makes_the_reconstruction_of_the_picture_it_is_told():
    """Whatever the seed, the batch and the schedule's noise; and it stands at the right of its picture in pairs."""
    pictures = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    made = recipe(pictures)
    with torch.no_grad():
        expected = Pixels().decode(made.denoiser.network(Pixels().encode(pictures), torch.zeros_like).x)
    told = made.conditions.ask(torch.arange(7))
    assert torch.equal(told[5:], pictures[:2])
    images = made(range(7), told)
    assert torch.equal(images.images[:5], expected) and images.nfe == 1
    pairs = beside(made)(range(5), told[:5]).images
    assert torch.equal(pairs, torch.cat([pictures, expected], dim=2))


def test_interpolation_ends_at_the_two_reconstructions():
    pictures = torch.randint(0, 256, (5, 8, 8, 1), dtype=torch.uint8)
    made = recipe(pictures)
    between = edited(made, {"_target_": "diffusion.editing.interpolate", "images": [4, 1]}, n=5)
    images = between(range(5), between.conditions.ask(torch.arange(5))).images
    ends = made(range(5), made.conditions.ask(torch.arange(5))).images
    assert torch.equal(images[0], ends[4]) and torch.equal(images[4], ends[1])
    z = made.denoiser.latents(pictures[[4, 1]])
    assert torch.equal(images[2], Pixels().decode(made.denoiser.network.decode(z.mean(0, keepdim=True)).detach())[0])


def test_what_is_no_autoencoder_and_what_is_not_told():
    with pytest.raises(ValueError, match="UNet is none: say network=autoencoder"):
        Autoencoding(UNet(1, 1, 8, 8, (1,), attention=(8,)), Cosine(), Pixels((8, 8, 1)))
    with pytest.raises(ValueError, match="say codec=pixels"):
        Autoencoding(KLAutoencoder(1, 8, 8), Cosine(), Standardised((8, 8, 1)))
    with pytest.raises(ValueError, match="it is told one, as edit=autoencode does"):
        recipe(torch.zeros(1, 8, 8, 1, dtype=torch.uint8))([0])
    with pytest.raises(UserError, match="no pictures out of noise: say edit=autoencode"):
        edited(recipe(torch.zeros(1, 8, 8, 1, dtype=torch.uint8)), {})


@pytest.mark.parametrize("side", [8, 28])
def test_psnr_and_ssim(side):
    """One level everywhere is 20 log10 255; equal pictures are 1, and their PSNR is finite; each number is a mean over pictures."""
    torch.manual_seed(0)
    pictures = torch.randint(0, 255, (4, side, side, 3), dtype=torch.uint8)
    imageset = SimpleNamespace(images=pictures.numpy(), labels=None, name="noise", split="train", sha256="0")
    numbers = {}
    for metric in (PSNR(4), SSIM(4)):
        metric.setup(imageset, "cpu", Originals(shown=pictures))
        metric.update(pictures[:1] + 1, pictures[:1])
        metric.update(pictures[1:], pictures[1:])
        numbers |= metric.numbers()
    most = 10 * math.log10(255**2 * side**2 * 3)
    assert numbers["psnr@4"] == pytest.approx((20 * math.log10(255) + 3 * most) / 4, abs=1e-3)
    assert 0.99 < numbers["ssim@4"] < 1 and not math.isnan(numbers["ssim@4/error"])


def test_ssim_by_hand():
    """At each pixel, of means, variances and covariance weighed by the Gaussian over a mirrored window (Wang et al. 2004, eq. 13)."""
    torch.manual_seed(0)
    x, y = torch.randint(0, 256, (2, 1, 1, 8, 9)).float()
    line = torch.exp(-((torch.arange(11.0) - 5) ** 2) / (2 * 1.5**2))
    w = (torch.outer(line, line) / line.sum() ** 2).flatten()
    a, b = (torch.nn.functional.pad(v, (5, 5, 5, 5), mode="reflect").unfold(2, 11, 1).unfold(3, 11, 1).flatten(4).double() for v in (x, y))

    def mean(v):
        return (w * v).sum(-1)

    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    va, vb, cov = mean(a * a) - mean(a) ** 2, mean(b * b) - mean(b) ** 2, mean(a * b) - mean(a) * mean(b)
    expected = (2 * mean(a) * mean(b) + c1) * (2 * cov + c2) / ((mean(a) ** 2 + mean(b) ** 2 + c1) * (va + vb + c2))
    assert SSIM(2).each(x, y).item() == pytest.approx(expected.mean().item(), rel=1e-3)
