"""A discriminator that is trained beside the autoencoder. It is no part of the LightningModule, so that Lightning has one optimizer and
counts each batch once."""

from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call
from torch.nn.functional import relu

from diffusion.networks.discriminator import PatchDiscriminator
from diffusion.reconstruction import Adversary
from diffusion.support.ranks import rank_and_world, sum_over_ranks


class Opponent:
    """A discriminator D with an optimizer, Adam, and gradients of its own, in float32 whatever the training's precision.

        opponent.term(x_hat, reconstruction, last)      # what the autoencoder's loss gains
        opponent.learn(x, x_hat, parts)                 # D's gradients of one of the step's `parts` batches
        opponent.step(lr)                               # after the autoencoder's step

    The means are over the pictures of all ranks, whose gradients `step` averages: so D is the same on each."""

    def __init__(self, settings: Adversary, in_channels: int, image_size: list[int]) -> None:
        self.settings = settings
        self.network = PatchDiscriminator(in_channels, image_size, settings.channels, settings.layers)
        self.optimizer = torch.optim.Adam(self.network.parameters(), betas=(0.5, 0.9))

    def to(self, device: torch.device) -> None:
        """Move D; its optimizer's numbers follow."""
        self.network.to(device)
        self.optimizer.load_state_dict(self.optimizer.state_dict())

    def term(self, x_hat: Tensor, reconstruction: Tensor, last: Tensor) -> tuple[Tensor, Tensor]:
        """(w L_G, the adaptive weight): L_G = -mean D(x'), w = weight |grad L_rec| / (|grad L_G| + 1e-4), at most 1e4, the gradients being
        those at the decoder's `last` weights over all ranks; L_rec = `reconstruction` []. D's weights get no gradient of it."""
        weights = {name: parameter.detach() for name, parameter in self.network.named_parameters()}
        with torch.autocast(x_hat.device.type, enabled=False):
            adversarial = -functional_call(self.network, weights, (x_hat.to(self.kind),)).mean()
        sizes = [self.over_ranks(torch.autograd.grad(loss, last, retain_graph=True)[0]).norm() for loss in (reconstruction, adversarial)]
        weight = self.settings.weight * (sizes[0] / (sizes[1] + 1e-4)).clamp(0, 1e4).detach()
        return weight * adversarial, weight

    def learn(self, x: Tensor, x_hat: Tensor, parts: int = 1) -> Tensor:
        """The hinge loss [], half of mean relu(1 - D(x)) + mean relu(1 + D(x')), after its gradients were added, for one of `parts`."""
        with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
            real, made = (self.network(pictures.detach().to(self.kind)) for pictures in (x, x_hat))
            loss = (relu(1 - real).mean() + relu(1 + made).mean()) / 2
            (loss / parts).backward()
        return loss.detach()

    def step(self, lr: float) -> None:
        """A step at this learning rate, if there is a gradient."""
        gradients = {parameter: parameter.grad for parameter in self.network.parameters() if parameter.grad is not None}
        if not gradients:
            return
        whole = self.over_ranks(torch.cat([gradient.flatten() for gradient in gradients.values()]))  # one message
        for parameter, part in zip(gradients, whole.split([p.numel() for p in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)
        for group in self.optimizer.param_groups:
            group["lr"] = lr * self.settings.rate
        self.optimizer.step()
        self.optimizer.zero_grad()

    @property
    def kind(self) -> torch.dtype:
        """The precision of D."""
        return next(self.network.parameters()).dtype

    def over_ranks(self, gradient: Tensor) -> Tensor:
        """The mean of the ranks' gradients."""
        return sum_over_ranks(gradient) / rank_and_world()[1]

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors and numbers."""
        return {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """See state_dict."""
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
