# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 7. Metrics and their traps
# A Fréchet distance compares two sets of pictures by the Gaussians of their features,
#
# $$d^2 = \|m_a - m_b\|^2 + \operatorname{tr}\big(C_a + C_b - 2 (C_a C_b)^{1/2}\big).$$
#
# "FID" is that in the features of one certain Inception network. Here the network is a classifier of 8 x 8 digits, which trains itself in
# two seconds, and the number is called fd-digits. Every trap is the same with the large network, only slower.

# %%
import tempfile
from io import BytesIO

import matplotlib.pyplot as plt
import numpy as np
import torch
from PIL import Image
from torch.nn.functional import interpolate

from diffusion.codecs import Pixels
from diffusion.data import Digits
from diffusion.generate import generate
from diffusion.grids import Trailing
from diffusion.metrics import DigitsClassifier, FrechetDistance, Memorization, Moments, frechet_distance, mmd2, precision_recall
from diffusion.metrics.extractors import Pixels as PixelFeatures
from diffusion.oracles import EmpiricalDistribution
from diffusion.samplers import DDIM
from diffusion.schedules import Cosine

folder = tempfile.TemporaryDirectory()
fit, test = (Digits(cache=folder.name, split=split).load() for split in ("fit", "test"))
extractor = DigitsClassifier(cache=folder.name)
digits, labels = torch.from_numpy(np.concatenate([fit.images, test.images])), torch.from_numpy(np.concatenate([fit.labels, test.labels]))


def world(n, seed, ink=1.0, classes=10):
    """n pictures of an endless population: a digit, moved by up to a pixel, with noise. `ink` below 1 is a model that draws too pale."""
    draw = torch.Generator().manual_seed(seed)
    chosen = torch.nonzero(labels < classes)[:, 0]
    x = digits[chosen[torch.randint(len(chosen), (n,), generator=draw)]].float()
    shifts = torch.randint(-1, 2, (n, 2), generator=draw)
    x = torch.stack([image.roll(shift.tolist(), (0, 1)) for image, shift in zip(x, shifts, strict=True)])
    return (ink * x + 8 * torch.randn(x.shape, generator=draw)).round().clamp(0, 255).to(torch.uint8)


def moments(features):
    found = Moments(features.shape[1])
    found.update(features)
    return found


real = extractor(world(6000, 0))
reference = moments(real)

# %% [markdown]
# ## A perfect model does not score 0
# Another draw of the same population is what a perfect model would make. Its distance is not 0, and it is the larger the fewer pictures
# there are: a covariance of few samples is too ragged, and the trace of a root does not average that away. The bias goes like $1/n$. The
# kernel distance (KID) is an unbiased estimate: it is noisier, and right on average.

# %%
counts, repeats = (100, 200, 400, 800, 1600), 6
draws = {n: [extractor(world(n, 100 * n + i)) for i in range(repeats)] for n in counts}
frechet = torch.tensor([[frechet_distance(reference, moments(x)) for x in draws[n]] for n in counts])
kernel = torch.tensor([[mmd2(x, real[:1500]).item() for x in draws[n]] for n in counts])
pale = frechet_distance(reference, moments(extractor(world(1600, 7, ink=0.92))))
slope, at_infinity = np.polyfit(1 / np.array(counts[1:]), frechet.mean(1)[1:], 1)
figure, axes = plt.subplots(1, 2, figsize=(13, 4), layout="constrained")
inverse = 1 / torch.tensor(counts)
axes[0].plot(inverse, frechet, "o", color="tab:blue", ms=4)
axes[0].plot([0, 0.01], [at_infinity, at_infinity + 0.01 * slope], "k:", label=f"a line in 1/n meets 0 at {at_infinity:.2f}")
axes[0].axhline(pale, color="tab:red", label=f"a model that draws too pale, n = 1600: {pale:.2f}")
axes[0].set(title="A perfect model, measured with few pictures, loses", xlabel="1/n", ylabel="fd-digits")
axes[0].legend()
axes[1].errorbar(counts, kernel.mean(1), kernel.std(1), fmt="o", capsize=4)
axes[1].axhline(0, color="black", ls=":")
axes[1].set(title="The kernel distance has no bias, but a spread", xlabel="n", ylabel="squared MMD, 6 draws of n", xscale="log")
assert (frechet.mean(1).diff() < 0).all()
assert frechet.mean(1)[0] > pale > frechet.mean(1)[-1]
assert abs(at_infinity) < 0.1 * frechet.mean(1)[0]
assert (kernel.mean(1).abs() < 3 * kernel.std(1) / repeats**0.5 + 1e-4).all()

# %% [markdown]
# So $n$ is a part of the number's name (`fd-digits@1k`), and numbers of two $n$ are never compared. `FrechetInfinity` is that line.
#
# ## Nothing about the model was changed
# The same 2,000 good pictures, on their way to the metric. A JPEG between, a resize by another library, a loader that still mirrors at
# random: each looks harmless, some are.

# %%
made = world(2000, 11)


def jpeg(image, quality):
    file = BytesIO()
    Image.fromarray(image[..., 0].numpy()).save(file, "JPEG", quality=quality)
    return torch.from_numpy(np.array(Image.open(file)))[..., None]


def small_again(**how):
    """Enlarged four times, as a model of larger pictures has them, and brought back."""
    large = interpolate(made.permute(0, 3, 1, 2).float(), scale_factor=4, mode="bicubic")
    small = interpolate(large, size=8, **how)
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


ways = {
    "as they are": made,
    "other seeds": world(2000, 12),
    "JPEG of quality 75": torch.stack([jpeg(image, 75) for image in made]),
    "JPEG of quality 10": torch.stack([jpeg(image, 10) for image in made]),
    "resized, bilinear": small_again(mode="bilinear", antialias=False),
    "resized, by area": small_again(mode="area"),
    "resized, every 4th pixel": small_again(mode="nearest"),
    "mirrored at random": torch.where(torch.arange(2000).reshape(-1, 1, 1, 1) % 2 == 0, made, made.flip(2)),
}
distances = {name: frechet_distance(reference, moments(extractor(x))) for name, x in ways.items()}
flat = PixelFeatures(cache=folder.name)
flat.check(made.shape)
plain = moments(flat(world(6000, 0)))
in_pixels = {name: frechet_distance(plain, moments(flat(x))) for name, x in ways.items()}
figure, axes = plt.subplots(1, 2, figsize=(14, 3.6), sharey=True, layout="constrained")
for axis, found, name in ((axes[0], distances, "fd-digits"), (axes[1], in_pixels, "fd-pixels")):
    axis.barh(list(found), list(found.values()))
    axis.axvline(found["other seeds"], color="black", ls=":")
    axis.set(title=f"One model, eight numbers ({name})", xlabel=name)
axes[0].invert_yaxis()
assert distances["resized, every 4th pixel"] > 3 * distances["other seeds"] > distances["JPEG of quality 75"]
assert distances["mirrored at random"] > distances["resized, by area"]
assert in_pixels["mirrored at random"] < in_pixels["resized, by area"]

# %% [markdown]
# And the two extractors do not agree: to the classifier mirroring is worse than a soft resize, to the pixels it is the other way round. A
# distance is a distance *in the eyes of a network*. That is why numbers here have passports, with the extractor's hash, the resize, the
# quantisation, $n$ and the reference's hash.
#
# ## One number for two failings
# A model can make bad pictures, or good ones of too few kinds. *Precision* is the share of its pictures that lie among the real ones,
# *recall* the share of real ones that lie among its pictures.

# %%
models = {
    "perfect": world(1500, 21),
    "five classes only": world(1500, 22, classes=5),
    "too pale": world(1500, 23, ink=0.6),
    "100 pictures, repeated": world(100, 24).repeat(15, 1, 1, 1),
    "noise over everything": (world(1500, 25).float() + 120 * torch.randn(1500, 8, 8, 1)).clamp(0, 255).to(torch.uint8),
}
figure, axis = plt.subplots(figsize=(8, 5), layout="constrained")
shares = {}
for name, x in models.items():
    features = extractor(x)
    shares[name] = precision_recall(features.double(), real[:1500].double(), k=3).tolist()
    axis.plot(*shares[name][::-1], "o", ms=10, label=f"{name}: fd-digits {frechet_distance(reference, moments(features)):.1f}")
axis.set(title="What a distance adds up, apart", xlabel="recall (diversity)", ylabel="precision (quality)", xlim=(-0.03, 1.03))
axis.legend(loc="lower left")
assert shares["five classes only"][1] < 0.85 * shares["perfect"][1] and shares["five classes only"][0] > 0.8 * shares["perfect"][0]
assert shares["noise over everything"][0] < shares["perfect"][0]

# %% [markdown]
# ## The best distance is a thief's
# A model that gives back its training pictures is perfect by every number so far. We have one: `EmpiricalDistribution`, the exact denoiser
# of a finite set. What a *finite* set's diffusion samples is that set. `Memorization` asks of each picture whether one training
# picture is far nearer than any other.

# %%
exact = EmpiricalDistribution(Pixels().encode(torch.from_numpy(np.array(fit.images))), Cosine())
stolen = generate(exact, DDIM(), Trailing(25), (1, 8, 8), seeds=range(300), batch_size=100)
honest = torch.from_numpy(np.array(test.images))  # 300 digits by other people
figure, axes = plt.subplots(2, 1, figsize=(9, 5), layout="constrained")
copies = {}
for axis, (name, images) in zip(axes, {"the exact denoiser": stolen, "unseen digits": honest}.items(), strict=True):
    distance, memory = (
        FrechetDistance(extractor, n=300, cache=folder.name),
        Memorization(PixelFeatures(cache=folder.name), n=300, cache=folder.name),
    )
    numbers = {}
    for metric in (distance, memory):
        metric.setup(fit, "cpu")
        metric.update(images)
        numbers |= metric.numbers()
    copies[name] = numbers[memory.name]
    axis.imshow(memory.picture())
    axis.set_title(f"{name}: {distance.name} {numbers[distance.name]:.2f}, copies {copies[name]:.0%}; below, the nearest training pictures")
    axis.axis("off")
assert copies["the exact denoiser"] > 0.9 and copies["unseen digits"] < 0.1

# %% [markdown]
# ## What to try
# * Draw the first plot for `real[:1500]` as the reference. What has the size of the *reference* to do with the bias?
# * `density_coverage` is the younger sister of `precision_recall`. Put one outlier among the real features, and compare them.
# * Every metric has `groups=10` for a standard error. Is the difference of two models of yours larger than that?
# * `python -m diffusion.evaluate ckpt=runs/NAME metric=[fd_digits,memorization] metric.n=1000`, then read `metrics.jsonl`.
