"""Autoencoders against torch.distributions, against autograd by hand, and on sizes that f does not divide."""

import pytest
import torch
import yaml
from composing import ROOT
from torch.distributions import Independent, Normal, kl_divergence

from diffusion.denoiser import Denoiser
from diffusion.networks import KLAutoencoder, VQAutoencoder
from diffusion.parameterization import X0
from diffusion.reconstruction import Reconstruction
from diffusion.schedules import Cosine
from diffusion.support.build import build

KINDS = (KLAutoencoder, VQAutoencoder)


@pytest.fixture(params=KINDS)
def network(request):
    torch.manual_seed(0)
    return request.param(in_channels=1, channels=8, multipliers=[1, 2, 2], latent_channels=3)


def stirred(network, scale=0.1):
    """The network with all its weights moved: as it is built, residual branches end in zeros."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(scale * torch.randn_like(parameter))
    return network


@pytest.mark.parametrize("size", [(8, 8), (9, 8), (7, 10), (28, 27)])
def test_sizes_that_f_does_not_divide(network, size):
    """Latents of ceil(side / f), a reconstruction of the picture's size, and the rest of what is decoded is cut off."""
    x = torch.randn(2, 1, *size)
    latents = (2, 3, *(-(-side // 4) for side in size))
    stirred(network).eval()
    mean, logvar = network.moments(x)
    whole = network.decode(mean)
    assert network.factor == 4 and mean.shape == logvar.shape == latents
    assert whole.shape == (2, 1, 4 * latents[2], 4 * latents[3])
    assert torch.equal(network(x, torch.zeros_like).x, whole[..., : size[0], : size[1]])


def test_padding_repeats_the_last_pixels(network):
    """So a picture, and the same picture continued by hand, have the same latents."""
    x = torch.randn(1, 1, 6, 7)
    x = torch.cat([x, x[..., -1:, :].expand(-1, -1, 2, -1)], 2)
    continued = torch.cat([x, x[..., -1:]], 3)
    torch.testing.assert_close(stirred(network).moments(x[:, :, :6])[0], network.moments(continued)[0])


def test_kl_is_that_of_torch_distributions():
    torch.manual_seed(0)
    network, x = stirred(KLAutoencoder(1, 8, 8, [1, 2], latent_channels=3), 0.3).double(), torch.randn(5, 1, 8, 8).double()
    mean, logvar = network.moments(x)
    posterior = Independent(Normal(mean, (logvar / 2).exp()), 3)
    prior = Independent(Normal(torch.zeros_like(mean), torch.ones_like(mean)), 3)
    torch.testing.assert_close(network(x).penalties["kl"], kl_divergence(posterior, prior), rtol=1e-12, atol=0)


def test_the_decoder_is_given_a_draw_of_the_posterior():
    torch.manual_seed(0)
    network, x = stirred(KLAutoencoder(1, 8, 8, [1, 2])).double(), torch.randn(5, 1, 8, 8).double()
    (mean, logvar), noise = network.moments(x), torch.randn(5, 4, 4, 4).double()
    torch.testing.assert_close(network(x, lambda _: noise).x, network.decode(mean + (logvar / 2).exp() * noise))


def test_logvar_stays_within_its_bounds():
    network = KLAutoencoder(1, 8, 8, [1, 2], latent_channels=1)
    for bias, bound in ((-100.0, -30.0), (100.0, 20.0)):
        network.latents.bias.data.fill_(bias)
        assert (network.moments(torch.zeros(1, 1, 8, 8))[1] == bound).all()


def vq(codes=7):
    torch.manual_seed(0)
    network = stirred(VQAutoencoder(1, 8, 8, [1, 2], latent_channels=3, codes=codes)).double()
    network.codes.weight.data.normal_()
    return network


def test_latents_are_put_on_the_nearest_code():
    network, z = vq(), torch.randn(2, 3, 4, 5).double()
    found = network.nearest(z)
    for i, j, k in ((0, 0, 0), (1, 3, 4), (0, 2, 1)):
        distances = [(z[i, :, j, k] - code).norm().item() for code in network.codes.weight.detach()]
        assert torch.equal(found[i, :, j, k], network.codes.weight[distances.index(min(distances))])


def test_the_gradient_passes_the_search_as_if_it_were_the_identity():
    """Of any function of what is decoded: the gradient at the latents is that at the codes, and the codes get none of it."""
    network, z = vq(), torch.randn(2, 3, 4, 4).double().requires_grad_()
    found = network.nearest(z).detach().requires_grad_()
    through = super(VQAutoencoder, network).decode(found).square().sum()
    network.decode(z).square().sum().backward()
    assert network.codes.weight.grad is None
    torch.testing.assert_close(z.grad, torch.autograd.grad(through, found)[0])


def test_the_penalty_of_codes_and_its_gradients():
    """64 pixels times mean (sg[z] - e)^2 + 0.25 (z - sg[e])^2: 128 (e - z)/n at a code, and a quarter of the opposite at the latents."""
    network, x = vq(codes=1), torch.randn(2, 1, 8, 8).double()
    seen = {}
    network.latents.register_forward_hook(lambda _, __, out: (out.retain_grad(), seen.update(z=out))[0])
    penalty = network(x).penalties["vq"]
    penalty.sum().backward()
    z, code = seen["z"].detach(), network.codes.weight.detach().reshape(1, 3, 1, 1)
    n = z[0].numel()
    torch.testing.assert_close(penalty, 64 * 1.25 * ((z - code) ** 2).flatten(1).mean(1))
    torch.testing.assert_close(network.codes.weight.grad[0], 64 * (2 * (code - z) / n).sum((0, 2, 3)))
    torch.testing.assert_close(seen["z"].grad, 64 * 0.25 * 2 * (z - code) / n)


def test_the_loss_of_the_vq_form_is_that_of_the_paper_s_code():
    """Times the picture's elements: the mean of |x - x'| over them, and the mean of the codes' penalty over the latents'."""
    network, x = vq(), torch.randn(2, 1, 8, 8).double()
    made = network(x)
    z = network.encoded(x)
    mean = (x - made.x).abs().mean() + 1.25 * ((z - network.nearest(z)) ** 2).mean()
    torch.testing.assert_close(Reconstruction()(x, made)["loss"].mean() / 64, mean)


def test_the_autoencoder_of_stable_diffusion_has_as_many_weights():
    """83,653,863, as diffusers counts those of runwayml/stable-diffusion-v1-5's."""
    settings = yaml.safe_load((ROOT / "conf/network/autoencoder_f8.yaml").read_text())
    with torch.device("meta"):
        network = build(settings, "network", {"in_channels": 3, "image_size": 256})
    assert sum(p.numel() for p in network.parameters()) == 83_653_863 and network.factor == 8


def test_an_autoencoder_is_no_denoiser():
    with pytest.raises(ValueError, match="encodes pictures and denoises none: say task=autoencoder"):
        Denoiser(KLAutoencoder(1, 8, 8), Cosine(), X0())


@pytest.mark.parametrize("size, factor", [(8, 2), (15, 2), (28, 4), (32, 4), ([8, 64], 2)])
def test_levels_follow_the_size_of_pictures(size, factor):
    assert KLAutoencoder(1, size, 4).factor == factor
