"""Claim card of DiCo, a diffusion network of convolutions (arXiv:2505.11196)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.nn.diffusion import Diffusion
from paredown.papers.cards._parts import Build, Exact, Timing, Trained, Work, better, learns
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.workloads.digits import TRAIN, scans
from paredown.workloads.fit import Phase, fit
from paredown.zoo.dico import DiCo, DiCoBlock
from paredown.zoo.dit import DiT

PROCESS_STEPS, SAMPLER_STEPS, SAMPLES = 200, 20, 300


@dataclass(frozen=True)
class Plan:
    """How long a network trains: steps of ``batch`` scans at this rate."""

    steps: int
    batch: int = 64
    rate: float = 3e-3


def digits(held_out: bool) -> tuple[Tensor, Tensor]:
    """The 8 x 8 scans in -1..1 and their classes."""
    images, labels = scans()
    part = slice(TRAIN, None) if held_out else slice(0, TRAIN)
    return images[part] * 2 - 1, labels[part]


class NoisyDigits:
    """One epoch of ``((noisy scan, time, class), noise)`` batches, seeded from torch."""

    def __init__(self, plan: Plan, process: Diffusion) -> None:
        self.plan, self.process = plan, process
        self.images, self.labels = digits(held_out=False)

    def __call__(self) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """Batches with time, noise and scans drawn anew."""
        generator = torch.Generator().manual_seed(int(torch.randint(2**31 - 1, ())))
        for _ in range(self.plan.steps):
            pick = torch.randint(len(self.images), (self.plan.batch,), generator=generator)
            clean = self.images[pick]
            t = torch.randint(self.process.steps, (self.plan.batch,), generator=generator)
            noise = torch.randn(clean.shape, generator=generator)
            yield (self.process.noised(clean, t, noise), t, self.labels[pick]), noise


def small_diffusion(name: str) -> nn.Module:
    """A DiCo of one block per group, with channel attention or without; a DiT of as much work."""
    if name == "DiT":
        return DiT(48, 4, 4, 10, 1, image_size=8, patch=2, learn_sigma=False)
    attends = name == "DiCo"
    return DiCo(16, (1, 1, 1, 1, 1), 2, 10, 1, learn_sigma=False, attention=attends)


def frechet(found: Tensor, wanted: Tensor) -> float:
    """Fréchet distance of two sets of 8 x 8 images as Gaussians over pixels.

    ``|m1 - m2|^2 + tr(C1 + C2 - 2 (C1 C2)^(1/2))`` (Heusel et al. 2017, arXiv:1706.08500), pixels
    in place of the network's features.
    """
    a, b = (x.flatten(1).double().numpy() for x in (found, wanted))
    ca, cb = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    # The product's eigenvalues are those of a positive matrix, up to rounding.
    roots = np.sqrt(np.clip(np.linalg.eigvals(ca @ cb).real, 0, None))
    gap = a.mean(0) - b.mean(0)
    return float(gap @ gap + np.trace(ca) + np.trace(cb) - 2 * roots.sum())


def told_right(found: Tensor, asked: Tensor) -> float:
    """Share of samples that lie nearest to the mean training scan of the class asked for."""
    images, labels = digits(held_out=False)
    means = torch.stack([images[labels == c].mean(0) for c in range(10)]).flatten(1)
    return float((torch.cdist(found.flatten(1), means).argmin(1) == asked).float().mean())


def sameness(model: DiCo, inputs: tuple[Tensor, ...]) -> float:
    """Mean |correlation| of two channels before the last convolution, over the blocks."""
    seen: list[float] = []

    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        x = args[0].transpose(0, 1).flatten(1)
        x = x - x.mean(1, keepdim=True)
        x = x / x.norm(dim=1, keepdim=True).clamp(min=1e-6)
        table = (x @ x.T).abs()
        n = len(table)
        seen.append(float((table.sum() - table.diagonal().sum()) / (n * (n - 1))))

    blocks = [m for m in model.modules() if isinstance(m, DiCoBlock)]
    hooks = [b.leave.register_forward_pre_hook(look) for b in blocks]
    with torch.inference_mode():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    return sum(seen) / len(seen)


def generated(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """Distance of 300 samples from held-out scans, classes told right, channels alike (DiCo).

    ``closeness`` is 1 for the scans' own distribution and 0 for the noise sampling begins with.
    """
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model, process = build(name), Diffusion(PROCESS_STEPS, 1e-3, 5e-2)
    batches = NoisyDigits(plan, process)
    fit(model, [Phase(batches, 1)], rate=plan.rate, seed=seed, loss=F.mse_loss, average=50)
    generator = torch.Generator().manual_seed(7)
    asked = torch.arange(SAMPLES) % 10
    noise = torch.randn(SAMPLES, 1, 8, 8, generator=generator)
    found = process.sample(lambda x, t: model(x, t, asked), noise, steps=SAMPLER_STEPS)
    found = found.clamp(-1, 1)
    wanted = digits(held_out=True)[0]
    away = frechet(found, wanted)
    out = {
        "distance": away,
        "closeness": 1 - away / frechet(noise.clamp(-1, 1), wanted),
        "told right": told_right(found, asked),
    }
    if isinstance(model, DiCo):
        times = torch.randint(PROCESS_STEPS, (SAMPLES,), generator=generator)
        out["channels alike"] = sameness(model, (process.noised(found, times, noise), times, asked))
    return out


def silent() -> float:
    """The largest output of a new network: noise is predicted as zero."""
    torch.manual_seed(0)
    net = DiCo(8, (1, 1, 1, 1, 1), 2, 5).eval()
    with torch.inference_mode():
        out = net(torch.randn(2, 4, 8, 8), torch.tensor([3, 700]), torch.tensor([0, 4]))
    return float(out.abs().max())


def step_inputs() -> tuple[Tensor, ...]:
    """One scan, its time and class."""
    return torch.zeros(1, 1, 8, 8), torch.zeros(1, dtype=torch.int64), torch.zeros(1).long()


DIFFUSION_PAIR = (("DiT-S/2", "dit-s2"), ("DiCo-S", "dico-s"))


class DiCoCard(ArchitectureCard):
    """Counts and silence; time of a step, and digits drawn by a small one beside a small DiT."""

    key = "dico"
    claim = (
        "convolutions with compact channel attention generate as well as diffusion transformers "
        "or better, with less work and 2.7 times as fast (XL at 256 pixels)"
    )
    rows = ("dico-s", "dico-b", "dico-l", "dico-xl")
    exact = (Exact("largest output of a new network", silent, 0.0),)
    work = (Work("DiCo", "DiT", 1.02),)
    timings = (Timing(zoo_pair, (*DIFFUSION_PAIR, 32), "DiCo-S", "DiT-S/2", 1.0),)
    trained = Trained(
        generated,
        small_diffusion,
        step_inputs,
        {"quick": Plan(120), "full": Plan(3000)},
        seeds={"quick": 3, "full": 8},
        floors={"distance": 0.01, "closeness": 0.001, "channels alike": 0.001},
    )
    learnt = (
        learns("DiCo", 0.8, "closeness"),
        better("DiT", "DiCo", 0.0, "distance"),
        better("DiCo, no attention", "DiCo", 0.0, "channels alike"),
    )
