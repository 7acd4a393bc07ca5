"""Train the pulse network on pulses made anew, in float and then with fake quantization.

PulseDL-II (arXiv:2209.00884) trains in TensorFlow on recorded signals; here all signals are made.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from paredown.apps.pulses.integer import PulseNet
from paredown.apps.pulses.signals import Array, Pulses, Setup, pulses

BATCH = 128


@dataclass(frozen=True)
class Plan:
    """Steps in float, then with fake quantization, at these rates."""

    steps: int = 2500
    quantized_steps: int = 2000
    rate: float = 6e-3
    quantized_rate: float = 1e-3


def targets(setup: Setup, found: Pulses) -> NDArray[np.float32]:
    """What the network is to say: arrival and amplitude, each of deviation about 1."""
    low, high = setup.amplitudes
    time = (found.start - setup.start - 0.5) * np.sqrt(12)
    size = (found.amplitude - (low + high) / 2) * np.sqrt(12) / max(high - low, 1e-9)
    return np.stack([time, size], 1).astype(np.float32)


def read(setup: Setup, said: NDArray[np.float64]) -> tuple[Array, Array]:
    """Arrivals (samples) and amplitudes of a network's words (batch, 2)."""
    low, high = setup.amplitudes
    return (
        said[:, 0] / np.sqrt(12) + setup.start + 0.5,
        said[:, 1] * (high - low) / np.sqrt(12) + (low + high) / 2,
    )


def train(setup: Setup, net: PulseNet, plan: Plan, seed: int) -> None:
    """In place, in float."""
    _fit(setup, net.quantizing(False), plan.steps, plan.rate, 2 * seed)


def adapt(setup: Setup, net: PulseNet, plan: Plan, seed: int) -> None:
    """In place, with fake quantization, on ranges seen before."""
    _fit(setup, net.quantizing(), plan.quantized_steps, plan.quantized_rate, 2 * seed + 1)


def _fit(setup: Setup, net: PulseNet, steps: int, rate: float, seed: int) -> None:
    if not steps:
        return
    optimizer = torch.optim.Adam(net.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, rate, total_steps=steps, pct_start=0.1
    )
    found = pulses(setup, steps * BATCH, 1000 + seed)
    x, y = torch.from_numpy(found.waves), torch.from_numpy(targets(setup, found))
    net.train()
    for i in range(steps):
        here = slice(i * BATCH, (i + 1) * BATCH)
        loss = F.mse_loss(net(x[here]), y[here])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    net.eval()


def resolution(setup: Setup, said: NDArray[np.float64], true: Pulses) -> tuple[float, float]:
    """Deviations: of the arrival in samples, of the amplitude as a share of it."""
    start, amplitude = read(setup, said)
    off = (amplitude - true.amplitude) / true.amplitude
    return float(np.std(start - true.start)), float(np.std(off))
