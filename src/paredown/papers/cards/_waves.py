"""The 2-D wave equation by finite differences: pulses in a box, and the task of stepping ahead.

Second order in space and time (leapfrog), fixed ends, one speed for the whole box. A network sees
two snapshots and the speed, and predicts the field some steps later.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from paredown.errors import InputError

# Steps between the snapshots seen, and to the one predicted.
BEHIND, AHEAD = 4, 6
WARM_UP = 12
SPEEDS = (0.3, 0.6)
WIDTH = 2.0
LAPLACE = ((0.0, 1.0, 0.0), (1.0, -4.0, 1.0), (0.0, 1.0, 0.0))


def simulate(start: Tensor, speed: Tensor, steps: int) -> Tensor:
    """Fields ``(steps + 1, batch, side, side)`` from fields at rest ``(batch, side, side)``.

    ``speed`` ``(batch,)`` is in cells per step; above 1 / sqrt(2) the scheme is unstable
    (``InputError``). The field is zero outside the box.
    """
    if bool((speed.square() > 0.5).any()):
        raise InputError("the leapfrog scheme needs speeds of at most 0.707 cells a step")
    kernel = torch.tensor(LAPLACE, dtype=start.dtype)[None, None]
    factor = speed.square()[:, None, None]

    def bend(u: Tensor) -> Tensor:
        return factor * F.conv2d(u.unsqueeze(1), kernel, padding=1).squeeze(1)

    fields = [start, start + 0.5 * bend(start)]
    for _ in range(steps - 1):
        fields.append(2 * fields[-1] - fields[-2] + bend(fields[-1]))
    return torch.stack(fields[: steps + 1])


def fields(count: int, side: int, seed: int) -> tuple[Tensor, Tensor]:
    """Inputs ``(count, 3, side, side)`` and targets ``(count, 1, side, side)``, scaled alike.

    Each is one simulation: a pulse at a random place, a random speed, and one moment of it. The
    channels are two snapshots and the speed.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(shape, generator=generator)

    place = uniform(0.2 * side, 0.8 * side, count, 2)
    speed = uniform(*SPEEDS, count)
    axis = torch.arange(side, dtype=torch.float32)
    down = (axis[None] - place[:, :1]).square()
    right = (axis[None] - place[:, 1:]).square()
    start = (-(down[:, :, None] + right[:, None, :]) / (2 * WIDTH**2)).exp()
    run = simulate(start, speed, WARM_UP + BEHIND + AHEAD)
    moment = torch.randint(0, WARM_UP + 1, (count,), generator=generator)
    every = torch.arange(count)
    seen, now, later = (run[moment + at, every] for at in (0, BEHIND, BEHIND + AHEAD))
    channel = speed[:, None, None].expand(-1, side, side)
    # Pulses spread out: a scale of its own makes all snapshots count alike.
    scale = now.flatten(1).norm(dim=1)[:, None, None] / side
    return torch.stack((seen / scale, now / scale, channel), 1), (later / scale).unsqueeze(1)


def relative_error(found: Tensor, wanted: Tensor) -> float:
    """The L2 norm of the error over that of the field, both over all samples."""
    return float((found - wanted).norm() / wanted.norm())
