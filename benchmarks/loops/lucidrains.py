"""denoising-diffusion-pytorch's Trainer as its README uses it, on a folder of pictures. It takes turns where it asks for a batch."""

from ..harness import Absent, missing, sentence
from ..process import absent
from . import settings, turns


def main() -> None:
    try:
        with missing("denoising-diffusion-pytorch"):
            from denoising_diffusion_pytorch import GaussianDiffusion, Trainer
    except Absent as error:
        absent(sentence(error))

    from .. import networks

    given = settings(__doc__)
    network = networks.lucidrains(given.channels, dropout=0.1)
    facts = networks.facts(network, given.image_size, "cpu")
    diffusion = GaussianDiffusion(network, image_size=given.image_size, timesteps=1000, sampling_timesteps=250)
    trainer = Trainer(
        diffusion,
        given.images,
        train_batch_size=given.batch,
        train_lr=2e-4,
        train_num_steps=1_000_000,
        ema_decay=0.995,
        amp=given.precision == "bf16",
        mixed_precision_type="bf16",
        calculate_fid=False,
        save_and_sample_every=10_000_000,
        results_folder=given.turns,
    )
    trainer.dl = turning(trainer.dl, turns(given, **facts))
    trainer.train()


def turning(batches, turn):  # type: ignore[no-untyped-def]
    """The same batches, a turn taken before each."""
    for batch in batches:
        turn.step()
        yield batch


if __name__ == "__main__":
    main()
