"""A run's folder as the training itself writes it, with metrics of every kind."""

from composing import TINY, composed

from diffusion.training.run import train

DISTANCES = ("fd-digits@70", "fd-infinity-digits@70", "kd-digits@70")
BOUND = "nll-vlb@4"
OF_IMAGES = (*DISTANCES, "is-digits@70", "memorized-digits@70", "accuracy-digits@70")
WITH_ERROR = (*OF_IMAGES, BOUND)
T = 10


def real_run(folder, name="real", *words):
    """Four steps, measured at 0, 2 and 4, with two recipes."""
    metrics = "metric=[fd,fid_infinity,kid,inception_score,memorization,accuracy,nll_vlb]"
    small = ["metric.n=70", "metric.extractor=DigitsClassifier", "metric.groups=5", "metric.kid.subset_size=20", "metric.kid.subsets=3"]
    digits = ["dataset.num_classes=10", "metric.nll_vlb.images=4", f"schedule.num_timesteps={T}", "+samplers.second={}"]
    config = composed(
        *TINY, "steps=4", "eval_every=2", "eval_at_start=true", f"paths.cache={folder / 'cache'}", metrics, *small, *digits, *words
    )
    (folder / "runs" / name).mkdir(parents=True)
    train(config, folder / "runs" / name)
    return folder / "runs" / name
