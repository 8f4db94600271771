"""diffusers' and accelerate's unconditional training, step by step what its example does: the loader with its transforms, AdamW and its
learning rate's schedule, clipping, the average of the weights, and the tracker, which is told of every step."""

from ..harness import Absent, missing, sentence
from ..process import absent
from . import settings, turns


def main() -> None:
    try:
        with missing("diffusers or accelerate"):
            import torch
            import torch.nn.functional as F
            from accelerate import Accelerator
            from diffusers import DDPMScheduler, UNet2DModel  # noqa: F401 (before the memory is counted)
            from diffusers.optimization import get_scheduler
            from diffusers.training_utils import EMAModel
            from torch.utils.data import DataLoader
            from tqdm.auto import tqdm
    except Absent as error:
        absent(sentence(error))

    from .. import networks
    from .folder import Pictures

    given = settings(__doc__)
    torch.manual_seed(0)
    precision = "bf16" if given.precision == "bf16" else "no"
    place = {"log_with": "tensorboard", "project_dir": given.turns, "cpu": given.device == "cpu"}
    accelerator = Accelerator(mixed_precision=precision, dynamo_backend="inductor" if given.compile else None, **place)
    model = networks.diffusers(given.channels, given.image_size, dropout=0.1)
    facts = networks.facts(model, given.image_size, "cpu")
    ema = EMAModel(model.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=3 / 4, model_config=model.config)
    scheduler = DDPMScheduler(num_train_timesteps=1000, beta_schedule="linear", prediction_type="epsilon")
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6, eps=1e-8)
    data = Pictures(given.images, given.image_size)
    loader = DataLoader(data, batch_size=given.batch, shuffle=True, num_workers=given.workers, drop_last=True)
    rate = get_scheduler("cosine", optimizer=optimizer, num_warmup_steps=500, num_training_steps=1_000_000)
    model, optimizer, loader, rate = accelerator.prepare(model, optimizer, loader, rate)
    ema.to(accelerator.device)
    accelerator.init_trackers("train")
    turn, step, bar = turns(given, **facts), 0, tqdm(total=1_000_000, mininterval=1)
    while True:
        for clean in loader:
            turn.step()
            noise = torch.randn(clean.shape, device=clean.device)
            times = torch.randint(0, 1000, (len(clean),), device=clean.device).long()
            noisy = scheduler.add_noise(clean, noise, times)
            with accelerator.accumulate(model):
                loss = F.mse_loss(model(noisy, times).sample.float(), noise.float())
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    accelerator.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                rate.step()
                optimizer.zero_grad()
            ema.step(model.parameters())
            step += 1
            bar.update(1)
            logs = {"loss": loss.detach().item(), "lr": rate.get_last_lr()[0], "step": step, "ema_decay": ema.cur_decay_value}
            bar.set_postfix(**logs)
            accelerator.log(logs, step=step)


if __name__ == "__main__":
    main()
