"""What the losses of a run say: six questions, each answered by a rule, a number and a reference."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from diffusion.evaluation.losses import Bands
from diffusion.evaluation.noise_scale import NoiseScale
from diffusion.evaluation.tables import number

LEFT = (0.1, 0.9)  # the middle bands: where the Gaussian leaves this share of the data's variance
SURE = 3  # standard errors, where the largest of several bands is looked at
HALF = 0.5
SLIGHT = 0.1  # of the way to the exact denoiser: any finite data set has some
STARVED = 0.02  # of the variance of the network's target
INSIDE = 0.95  # of a learned variance
WORSE = 0.01  # of the error, by an average
APART = 10  # times the noise scale, or a part of it


@dataclass(frozen=True)
class Evidence:
    """What is known of a run. `batch` is how many items a step has, `old` the share of the averaged weights that is older than the second
    half of training, None without an average."""

    bands: Bands
    batch: int
    old: float | None = None
    noise: NoiseScale | None = None


@dataclass(frozen=True)
class Finding:
    """A question and its answer; whether that is `normal`; what was seen, in words and as `numbers` by name; the rule by which it is
    answered, where the rule is from, and what can be done."""

    question: str
    answer: str
    normal: bool
    seen: str
    rule: str
    reference: str
    remedy: str
    numbers: dict[str, float] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{self.question} {self.answer.capitalize()}: {self.seen}", f"  rule: {self.rule} ({self.reference})"]
        return "\n".join([*lines, *([] if self.normal else [f"  what to do: {self.remedy}"])])


def mean_and_error(values: Tensor) -> tuple[float, float]:
    """The mean of [n] and its standard error."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()


def below_the_gaussian(evidence: Evidence) -> Finding | None:
    """Whether the error in the middle bands, relative to the Gaussian's, is below 1 by two standard errors; None without a Gaussian."""
    bands = evidence.bands
    if bands.gaussian is None:
        return None
    left = bands.gaussian / (bands.log_snr.exp() * bands.variance)
    middle = (left > LEFT[0]) & (left < LEFT[1])
    middle = middle if middle.any() else (left - HALF).abs() == (left - HALF).abs().min()
    mean, error = mean_and_error((bands.errors["model/train"] / bands.gaussian[:, None])[middle].mean(0))
    fitted = (bands.gaussian * bands.fit)[middle].mean().item()
    return Finding(
        "Is it below the Gaussian's error?",
        "yes" if mean + 2 * error < 1 else "no" if mean - 2 * error > 1 + fitted else "not told apart",
        mean + 2 * error < 1,
        f"in the {int(middle.sum())} middle bands its error on training images is {mean:.3f} ± {2 * error:.3f} times the Gaussian's.",
        f"below 1 by two standard errors where the Gaussian leaves {LEFT[0]} to {LEFT[1]} of the data's variance. The Gaussian's is the "
        "best that a linear filter does, which knows the covariance and nothing else; it knows that of the training images themselves, "
        f"which is worth {number(fitted)} (its degrees of freedom, by the number of images): so much above 1 is not told apart",
        "Wiener's filter, PRML eq. 2.117; that networks begin as it: 2410.24060",
        "train longer; if it stays above, the learning rate, the network's size or the preconditioning is at fault.",
        {"ratio": mean, "error": error},
    )


def memorising(evidence: Evidence) -> Finding | None:
    """How much of what a table of the training images would gain the model has gained; None without held-out images or exact denoiser."""
    bands = evidence.bands
    if not {"exact/train", "model/heldout"} <= bands.errors.keys():
        return None
    train, heldout, exact = (bands.mean(name) for name in ("model/train", "model/heldout", "exact/train"))
    gap, error = heldout - train, (bands.error("model/heldout") ** 2 + bands.error("model/train") ** 2).sqrt()
    possible = exact < HALF * heldout  # where there is something to gain
    share = torch.where(possible, gap / (heldout - exact), 0.0)
    share = torch.where(gap > SURE * error, share, 0.0)
    worst = int(share.argmax())
    most, at = share[worst].item(), f"at log-SNR {bands.log_snr[worst]:.1f}"
    seen = (
        f"{at} its error is {number(heldout[worst].item())} on held-out images and {number(train[worst].item())} on training images, "
        f"{100 * most:.0f} % of the way down to the exact denoiser's {number(exact[worst].item())}."
        if most
        else f"in no band its error on held-out images is above that on training images by {SURE} standard errors."
    )
    return Finding(
        "Is it memorising?",
        "yes" if most > HALF else "no, but it fits its training images better" if most > SLIGHT else "no",
        most <= SLIGHT,
        seen,
        f"of the way from the error on held-out images down to the exact denoiser's on training images, by more than {SURE} standard "
        f"errors in some band where the latter is below half of the former; above {SLIGHT:g} it is worth a word, above {HALF:g} memorising",
        "the exact denoiser: EDM (2206.00364) eq. 57; that what memorises does not generalise: Yoon et al. 2023",
        "stop earlier, mirror pictures (dataset.flip=true), use dropout or a smaller network, or more data.",
        {"share": most, "log_snr": bands.log_snr[worst].item()},
    )


def starved(evidence: Evidence) -> Finding | None:
    """Whether the excess over the Gaussian's error, in units of the target's variance, is largest in an end band and too large."""
    bands = evidence.bands
    if bands.gaussian is None:
        return None
    excess = bands.target * (bands.mean("model/train") - bands.gaussian)
    error = bands.target * bands.error("model/train")
    worst, last = int(excess.argmax()), len(excess) - 1
    end = min(worst, last - worst) < max(1, len(excess) // 5)
    bad = end and (excess[worst] - 2 * error[worst]).item() > STARVED
    name = "clean" if worst <= last / 2 else "noisy"
    return Finding(
        "Is one end of t starved?",
        f"yes, the {name} one" if bad else "no",
        not bad,
        f"the largest excess over the Gaussian's error is {number(excess[worst].item())} ± {number(2 * error[worst].item())} of the "
        f"variance of the network's target, at log-SNR {bands.log_snr[worst]:.1f}.",
        f"the largest excess lies in the outer fifth of the bands, and is above {STARVED} by two standard errors. A linear filter has none",
        "the error by noise level, and that training spends its steps on some: EDM (2206.00364) sec. 5 and fig. 5a",
        "train longer; then draw t more often there (times=...), or weigh its losses more (objective.weighting).",
        {"excess": excess[worst].item(), "error": error[worst].item(), "log_snr": bands.log_snr[worst].item()},
    )


def variance_between_its_ends(evidence: Evidence) -> Finding | None:
    """Whether the learned variance lies between the posterior's two; None where none is learned."""
    bands = evidence.bands
    if bands.inside is None:
        return None
    worst = int(bands.inside.argmin())
    share, least = bands.inside.mean().item(), bands.inside[worst].item()
    return Finding(
        "Is the learned variance between its ends?",
        "yes" if share >= INSIDE else "no",
        share >= INSIDE,
        f"{100 * share:.1f} % of its values, and {100 * least:.1f} % in the band where it is least, at log-SNR {bands.log_snr[worst]:.1f}.",
        f"0 <= v <= 1 for {100 * INSIDE:g} % of all values, over all bands. Nothing keeps v there but the bound that it is trained by",
        "IDDPM (2102.09672) eq. 15 and sec. 3.1",
        "train longer or weigh the bound more (objective.weight); until then sample with sampler.variance=fixed_small.",
        {"inside": share, "least": least},
    )


def average_too_long(evidence: Evidence) -> Finding | None:
    """Whether averaged weights are worse than the last ones, image by image; None without an average."""
    bands = evidence.bands
    if evidence.old is None or "last/train" not in bands.errors:
        return None
    last = bands.target[:, None] * bands.errors["last/train"]
    gap = (bands.target[:, None] * bands.errors["model/train"] - last).sum(0) / last.mean(1).sum()
    mean, error = mean_and_error(gap)
    bad = mean - 2 * error > WORSE
    than = "above" if mean > 0 else "below"
    return Finding(
        "Is the average of the weights too long?",
        "yes" if bad else "no",
        not bad,
        f"with averaged weights the error is {100 * abs(mean):.2f} ± {200 * error:.2f} % {than} that with the last ones, and "
        f"{100 * evidence.old:.2g} % of the average is from the first half of training.",
        f"averaged weights are worse by {100 * WORSE:g} % and two standard errors, on the same images and noise; the error is that of the "
        "network's target, summed over the bands",
        "that the length of an average has an optimum, a part of training's: EDM2 (2312.02696) sec. 3",
        "train longer, say a smaller ema_decay, or ema=power, which is as long a part of any training.",
        {"gap": mean, "error": error, "old": evidence.old},
    )


def batch_and_noise(evidence: Evidence) -> Finding | None:
    """The batch size beside the gradient noise scale; None where that was not measured."""
    noise, batch = evidence.noise, evidence.batch
    if noise is None:
        return None
    known, scale = noise.value < float("inf"), noise.value
    small, large = known and batch * APART < scale, batch > APART * scale
    items = (
        f"is {scale:,.0f} items" if APART <= scale < float("inf") else f"is {number(scale)} items" if known else "is not told from infinity"
    )
    return Finding(
        "Is the batch as large as the gradient's noise asks for?",
        "no, it is smaller" if small else "no, it is larger" if large else "yes" if known else "not told",
        not small and not large,
        f"at this checkpoint the noise scale {items} by {noise.images:,} of them, and a step has {batch:,} items.",
        f"the batch is within {APART} times B_simple = tr(Sigma)/|G|^2. Far below it twice the batch does the work of two steps; far above "
        "it twice the batch gains nothing",
        "McCandlish et al. (1812.06162) eq. 2.9 and app. A.1; Adam's own is of the same order",
        "if training goes on from here, a batch of twice as many (accumulate=2, with a higher learning rate) does nearly two steps' work."
        if small
        else "a smaller batch would do as well in as many steps.",
        {"scale": scale, "batch": batch, "square": noise.square, "trace": noise.trace},
    )


QUESTIONS: tuple[Callable[[Evidence], Finding | None], ...] = (
    below_the_gaussian,
    memorising,
    starved,
    variance_between_its_ends,
    average_too_long,
    batch_and_noise,
)


def findings(evidence: Evidence) -> list[Finding]:
    """The questions that can be asked of this run, answered."""
    return [found for question in QUESTIONS if (found := question(evidence))]
