"""Residual MLPs with the skip in a wide space (Hourglass; Chen et al. 2025, arXiv:2510.01796).

Conventional blocks are narrow-wide-narrow around a narrow skip; these are wide-narrow-wide.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from paredown.errors import InputError
from paredown.nn.act import Activation, gelu

Lift = Literal["frozen", "trained", "identity"]


class ResidualMlpBlock(nn.Module):
    """``z + W2 act(W1 norm(z))``: equation 1 (hidden > width) and 2 (hidden < width) alike.

    The norm is a layer norm without learned scale and the linears have no bias, so a block has
    ``2 * width * hidden`` parameters (the paper leaves norm and activation open). W2 starts at
    zero: the identity.
    """

    def __init__(self, width: int, hidden: int, *, act: Activation = gelu) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, elementwise_affine=False)
        self.fc1 = nn.Linear(width, hidden, bias=False)
        self.act = act()
        self.fc2 = nn.Linear(hidden, width, bias=False)
        nn.init.zeros_(self.fc2.weight)

    def forward(self, z: Tensor) -> Tensor:
        """``(..., width)`` to the same shape."""
        return z + self.fc2(self.act(self.fc1(self.norm(z))))


class HourglassMlp(nn.Module):
    """Lift to ``width``, ``depth`` residual blocks of ``hidden``, linear to ``outputs``.

    ``lift`` "frozen" is a Gaussian matrix over sqrt(inputs), made again from ``seed`` and so
    neither stored nor trained (section 3.3); "trained" starts from the same matrix; "identity" is
    the conventional family, for ``width == inputs`` (else ``InputError``).
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        width: int,
        hidden: int,
        depth: int,
        *,
        lift: Lift = "frozen",
        seed: int = 0,
        act: Activation = gelu,
    ) -> None:
        super().__init__()
        if lift == "identity" and width != inputs:
            raise InputError(f"the identity lifts {inputs} inputs to {inputs}, not {width}")
        self.lift = lift
        if lift != "identity":
            generator = torch.Generator().manual_seed(seed)
            matrix = torch.randn(width, inputs, generator=generator) / inputs**0.5
            if lift == "trained":
                self.matrix = nn.Parameter(matrix)
            else:
                # Not persistent: the seed is enough to make it again.
                self.register_buffer("matrix", matrix, persistent=False)
        self.blocks = nn.Sequential(
            *(ResidualMlpBlock(width, hidden, act=act) for _ in range(depth))
        )
        self.head = nn.Linear(width, outputs, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """``(..., inputs)`` to ``(..., outputs)``."""
        z = x if self.lift == "identity" else nn.functional.linear(x, self.matrix)
        return self.head(self.blocks(z))


def trained_params(
    inputs: int, outputs: int, width: int, hidden: int, depth: int, *, lift: Lift = "frozen"
) -> int:
    """By formula: ``depth * 2 * width * hidden + width * outputs``, and a trained lift's."""
    lifted = width * inputs if lift == "trained" else 0
    return depth * 2 * width * hidden + width * outputs + lifted
