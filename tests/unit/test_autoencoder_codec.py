"""The codec of an autoencoder: what becomes of its moments, and how its network is called."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import Normal

from diffusion.codecs import Autoencoder, Pixels
from diffusion.data import ImageSet, Plain, Posteriors
from diffusion.guidance import Clip
from diffusion.guidance.base import same_space
from diffusion.support.errors import UserError
from diffusion.training.share import Share


class Means(nn.Module):
    """A posterior whose mean is that of each block of 4 x 4 pixels times a weight, and whose log-variance is another number in each of its
    two channels."""

    factor, latent_channels = 4, 2

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor([1.0, -2.0]))
        self.seen: list[tuple[int, torch.dtype, bool]] = []

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        self.seen.append((len(x), (x.flatten(1)[:, :2] @ torch.ones(2, 1, dtype=x.dtype)).dtype, self.training))
        x = nn.functional.pad(x, (0, -x.shape[-1] % 4, 0, -x.shape[-2] % 4))
        mean = nn.functional.avg_pool2d(x, 4) * self.weight[:, None, None]
        return mean, torch.tensor([-1.0, 0.5])[:, None, None].expand_as(mean)

    def decode(self, z: Tensor) -> Tensor:
        self.seen.append((len(z), (z.flatten(1)[:, :2] @ torch.ones(2, 1, dtype=z.dtype)).dtype, self.training))
        return (z[:, :1] / self.weight[0]).repeat_interleave(4, 2).repeat_interleave(4, 3)


def codec(height: int = 8, width: int = 8, **settings) -> Autoencoder:
    return Autoencoder(Means().train(), Pixels((height, width, 1)), [0.5, -0.5], [2.0, 3.0], **settings)


@pytest.fixture
def pictures() -> Tensor:
    return torch.randint(0, 256, (7, 8, 8, 1), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_latent_is_drawn_from_the_posterior(pictures):
    """By the quantiles of torch's normal distribution, an independent way to a draw of given noise."""
    noise = torch.randn(7, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    mean = pictures.float().reshape(7, 2, 4, 2, 4).mean((2, 4)) / 127.5 - 1
    for channel, (weight, logvar, m, s) in enumerate([(1.0, -1.0, 0.5, 2.0), (-2.0, 0.5, -0.5, 3.0)]):
        posterior = Normal((weight * mean).double(), Tensor([logvar]).double().exp().sqrt())
        z = posterior.icdf(Normal(0.0, 1.0).cdf(noise[:, channel].double()))
        torch.testing.assert_close(codec().encode(pictures, lambda x: noise)[:, channel].double(), (z - m) / s, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(codec().encode(pictures)[:, channel].double(), (posterior.mean - m) / s, rtol=1e-5, atol=1e-6)


def test_slices_change_nothing_but_the_memory(pictures):
    small, large = codec(slices=3), codec()
    x0 = large.encode(pictures)
    assert torch.equal(small.encode(pictures), x0) and torch.equal(small.decode(x0), large.decode(x0))
    assert [count for count, *_ in small.network.seen] == [3, 3, 1, 3, 3, 1]


def test_the_network_works_in_its_own_precision_and_mode(pictures):
    """Autocast reaches the product of matrices that the network makes, and it is float32 all the same."""
    made = codec()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made.decode(made.encode(pictures))
    assert {kind for _, kind, _ in made.network.seen} == {torch.float32} and not any(mode for *_, mode in made.network.seen)
    assert not any(weight.requires_grad for weight in made.network.parameters())
    double = Autoencoder(Means().double(), Pixels((8, 8, 1)), [0.0, 0.0], [1.0, 1.0])
    assert double.encode(pictures).dtype == torch.float64


@pytest.mark.parametrize(("height", "width"), [(8, 8), (7, 5), (4, 9)])
def test_a_size_that_f_does_not_divide_is_padded_and_cropped(height, width):
    made = codec().sized(height, width)
    flat = torch.full((3, height, width, 1), 200, dtype=torch.uint8)
    x0 = made.encode(flat)
    assert made.shape == (2, -(-height // 4), -(-width // 4)) == x0.shape[1:]
    assert made.decode(x0).shape == flat.shape and (made.decode(x0)[:, :1, :1] == flat[:, :1, :1]).all()
    assert made.decode(x0[:0]).shape == (0, height, width, 1)


def test_it_is_no_part_of_what_is_trained():
    holder = nn.Module()
    holder.codec = codec()
    assert list(holder.parameters()) == [] and holder.state_dict() == {}


def test_its_identity_is_that_of_the_weights():
    """The passport names the weights; a second model goes with it if they are the same, whatever the size of the pictures."""
    one, other = codec(), codec()
    with torch.no_grad():
        other.network.weight[0] = 3
    other = Autoencoder(other.network, other.pixels, other.mean, other.std)
    assert one.describe() == {"name": "Autoencoder", "weights": one.weights} and one.weights != other.weights
    same_space(SimpleNamespace(codec=codec(16, 8)), one, "The second model")
    for theirs in (other, Autoencoder(Means(), one.pixels, [0.0, 0.0], one.std), Pixels((8, 8, 1))):
        with pytest.raises(ValueError, match=r"^The second model was trained in another space"):
            same_space(SimpleNamespace(codec=theirs), one, "The second model")


def test_its_facts_are_the_data_s_shape_and_its_own_numbers():
    def data(*shape, dtype="uint8"):
        return SimpleNamespace(images=np.zeros((2, *shape), dtype), name="somewhere")

    made = codec()
    found = made.facts(data(28, 20, 1))
    assert found == {"data_shape": [28, 20, 1], "mean": [0.5, -0.5], "std": [2.0, 3.0], "weights": made.weights}
    for wrong in (data(28, 20, 3), data(8, 8, 1, dtype="float32"), data(2, dtype="float32")):
        with pytest.raises(UserError, match=r"^The autoencoder of codec\.ckpt is one of pictures of 8 bits with channels=1, and somewhere"):
            made.facts(wrong)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"^codec\.mean=\[0\.0\] should have 2 numbers, one for each channel of the latents\.$"):
        Autoencoder(Means(), Pixels((8, 8, 1)), [0.0], [1.0, 1.0])
    with pytest.raises(ValueError, match=r"^std\[1\]=0\.0 of Autoencoder must be above 0\.$"):
        Autoencoder(Means(), Pixels((8, 8, 1)), [0.0, 0.0], [1.0, 0.0])
    with pytest.raises(ValueError, match=r"^Clip needs a range, and x_0 has none in this space; leave the stage out of guidance\.$"):
        Clip(SimpleNamespace(schedule=None), codec=codec())


@pytest.mark.parametrize("mirror", [False, True])
def test_posteriors_that_were_kept_are_drawn_from_like_fresh_ones(pictures, tmp_path, mirror):
    """Kept in the cache's type, mirrored ones too; a rank that has half of a step's places draws half of what one alone would."""
    made, uniform = codec(), torch.linspace(0, 0.99, 7) if mirror else None
    data = ImageSet(pictures.numpy(), None, "somewhere", "train", 0, "its hash")
    kept = Posteriors(made, mirror, tmp_path)
    noise = torch.randn(7, 2, 2, 2, generator=torch.Generator().manual_seed(1))
    items = torch.from_numpy(kept.items(data))
    assert items.shape == (7, 1 + mirror, 2, 2, 2, 2)
    fresh = Plain(made).x0(pictures, uniform, lambda x: noise)
    torch.testing.assert_close(kept.x0(items, uniform, lambda x: noise), fresh, rtol=1e-6, atol=1e-6)
    if mirror:  # the first four are
        torch.testing.assert_close(fresh[:4], made.encode(pictures.flip(2), lambda x: noise)[:4])
        torch.testing.assert_close(fresh[4:], made.encode(pictures, lambda x: noise)[4:])
    calls = len(made.network.seen)
    kept.items(data)
    assert len(made.network.seen) == calls  # read from the disk
    whole, rows = [], []
    for share in (Share(6, 0, 6), Share(6, 0, 3), Share(6, 3, 3)):
        share.begin(0, 5)
        some = items[share.first : share.first + share.count]
        (whole if share.count == 6 else rows).append(kept.x0(some, share.rand(some.device) if mirror else None, share.randn_like))
    assert torch.equal(torch.cat(rows), whole[0])
