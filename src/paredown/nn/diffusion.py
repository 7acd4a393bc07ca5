"""Gaussian diffusion: the noise schedule, samplers of any noise-predicting network, guidance.

Ho et al. 2020 (DDPM, arXiv:2006.11239), Song et al. 2021 (DDIM, arXiv:2010.02502), Ho & Salimans
2022 (classifier-free guidance, arXiv:2207.12598).
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from paredown.errors import InputError

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""``(noisy images, time steps (batch,))`` to the noise predicted, of the images' shape."""


class Diffusion:
    """The forward process of ``steps`` steps with betas rising linearly from ``first`` to ``last``.

    ``alpha_bar[t]`` is the share of signal variance left after step t (DDPM, equation 4); the
    defaults are the paper's. Raises ``InputError`` for betas outside (0, 1) or no step.
    """

    def __init__(self, steps: int = 1000, first: float = 1e-4, last: float = 2e-2) -> None:
        if steps < 1 or not 0 < first <= last < 1:
            raise InputError("a diffusion needs at least one step and 0 < first <= last < 1")
        self.steps = steps
        betas = torch.linspace(first, last, steps, dtype=torch.float64)
        self.alpha_bar = torch.cumprod(1 - betas, 0)

    def noised(self, clean: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """Images after step ``t`` (batch,), in closed form (equation 4)."""
        signal, spread = self._scales(clean, t)
        return signal * clean + spread * noise

    def clean(self, noisy: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The images that this noise at step ``t`` came from: the inverse of :meth:`noised`."""
        signal, spread = self._scales(noisy, t)
        return (noisy - spread * noise) / signal

    def times(self, steps: int) -> list[int]:
        """``steps`` evenly spaced time steps from the noisiest to 0; ``InputError`` when more."""
        if not 1 <= steps <= self.steps:
            raise InputError(f"sampling takes 1 to {self.steps} steps, got {steps}")
        return torch.linspace(self.steps - 1, 0, steps).round().long().tolist()

    def step(self, noisy: Tensor, noise: Tensor, t: int, before: int, eta: float = 0.0) -> Tensor:
        """One reverse step from time ``t`` to ``before`` (-1: clean images), DDIM's equation 12.

        ``eta`` 0 is deterministic; 1 adds as much noise as DDPM's sampler.
        """
        at = torch.full((noisy.shape[0],), t, device=noisy.device)
        guess = self.clean(noisy, at, noise)
        if before < 0:
            return guess
        now, then = float(self.alpha_bar[t]), float(self.alpha_bar[before])
        fresh = eta * ((1 - then) / (1 - now)) ** 0.5 * (1 - now / then) ** 0.5
        out = then**0.5 * guess + (1 - then - fresh**2) ** 0.5 * noise
        return out + fresh * torch.randn_like(noisy) if fresh else out

    @torch.no_grad()
    def sample(
        self, denoiser: Denoiser, noise: Tensor, *, steps: int = 50, eta: float = 0.0
    ) -> Tensor:
        """Images from noise ``(batch, channels, h, w)`` in ``steps`` steps."""
        x = noise
        for t, before in pairwise([*self.times(steps), -1]):
            at = torch.full((x.shape[0],), t, device=x.device)
            x = self.step(x, denoiser(x, at), t, before, eta)
        return x

    def _scales(self, like: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        left = self.alpha_bar.to(like.device)[t].reshape(-1, *([1] * (like.ndim - 1)))
        return left.sqrt().to(like.dtype), (1 - left).sqrt().to(like.dtype)


class ClassConditional(nn.Module):
    """Base of networks that predict noise from noisy latents, time steps and classes ``(batch,)``.

    Class ``num_classes`` is "no class", for guidance; while training a class is replaced by it with
    probability ``class_dropout``. Raises ``InputError`` where that is no probability.
    """

    def __init__(self, num_classes: int, in_channels: int, class_dropout: float) -> None:
        super().__init__()
        if not 0 <= class_dropout <= 1:
            raise InputError(f"class_dropout is a probability, got {class_dropout}")
        self.num_classes, self.in_channels = num_classes, in_channels
        self.class_dropout = class_dropout

    @property
    def known_classes(self) -> int:
        """Rows of a table of classes, "no class" among them where it is ever told."""
        return self.num_classes + (1 if self.class_dropout else 0)

    def told(self, y: Tensor) -> Tensor:
        """The classes, while training some of them forgotten."""
        if not (self.training and self.class_dropout):
            return y
        lost = torch.rand(y.shape, device=y.device) < self.class_dropout
        return torch.where(lost, self.num_classes, y)

    def sample(
        self,
        noise: Tensor,
        y: Tensor,
        *,
        steps: int = 50,
        guidance: float = 1.0,
        diffusion: Diffusion | None = None,
    ) -> Tensor:
        """Latents from noise ``(batch, in_channels, h, w)`` for classes ``(batch,)``, DDIM.

        ``guidance`` above 1 pushes towards the class, at two runs of the network a step.
        """
        if guidance != 1 and not self.class_dropout:
            raise InputError("guidance needs a network built with class_dropout > 0")
        predict = self._denoiser(y)
        if guidance != 1:
            none = torch.full_like(y, self.num_classes)
            predict = guided(predict, self._denoiser(none), guidance)
        return (diffusion or Diffusion()).sample(predict, noise, steps=steps)

    def _denoiser(self, y: Tensor) -> Denoiser:
        """The noise alone, for these classes."""
        return lambda x, t: self(x, t, y)[:, : self.in_channels]


def guided(conditional: Denoiser, unconditional: Denoiser, scale: float) -> Denoiser:
    """Classifier-free guidance (equation 6): the conditional prediction, pushed by ``scale``.

    ``scale`` 1 is the conditional network alone.
    """

    def predict(x: Tensor, t: Tensor) -> Tensor:
        free = unconditional(x, t)
        return free + scale * (conditional(x, t) - free)

    return predict
