"""Which products of a plan run with sparse weights: by where their zeros lie and by measured costs.

A sparse kernel's time over the dense one's of the same shape is close to ``slope * filled +
each_output / inputs + each_input / outputs``: the work of the blocks that hold a number, what every
output costs, and what every activation costs. `LAWS` are fitted to benchmarks/results/sparse.json,
where predicted over measured times lie between 0.5 and 1.7; loading a plan times nothing, so one
machine always runs the same kernels. The form of the least time is taken where it saves enough.

``masked`` weights (Flash-LLM, Xia et al. 2023, arXiv:2309.10285) are multiplied as dense ones and
save bytes alone: they are for few rows, and for plans whose weights come from beyond the L2 cache
in every run. What every weight costs, zero or not, is its expansion.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from paredown.runtime.native.plan import Plan, Step

WORTH = 0.8
"""Most of the dense time that a sparse product may be predicted to take, to be sure to win."""
ZEROS = 0.25
"""Share of zeros from which a weight is looked at."""
ROWS = 16
"""Rows of activations from which the laws of kernels that skip zeros were measured."""
FEW = 64
"""Rows of activations up to which those of masked weights were."""
STREAMED = 8 << 20
"""Bytes of a plan's packed weights from which none is still in L2 when it is read again."""


@dataclass(frozen=True)
class Law:
    """Blocks of ``outputs`` by ``inputs`` weights, and what fits their kernel's time over dense.

    ``each_weight`` is what a weight costs where it is zero, ``each_row`` that again for each row of
    activations. It was measured for ``rows``; ``streamed``: for weights that no cache holds.
    """

    outputs: int
    inputs: int
    slope: float
    each_output: float
    each_input: float
    each_weight: float = 0
    each_row: float = 0
    rows: tuple[int, float] = (ROWS, math.inf)
    streamed: bool = False

    def filled(self, weight: torch.Tensor) -> float:
        """Share of the blocks of a matrix ``(outputs, inputs)`` with a weight other than zero."""
        rows, columns = weight.shape
        down, across = -(-rows // self.outputs), -(-columns // self.inputs)
        padded = weight.new_zeros(down * self.outputs, across * self.inputs, dtype=torch.bool)
        padded[:rows, :columns] = weight != 0
        blocks = padded.view(down, self.outputs, across, self.inputs).any(3).any(1)
        return float(blocks.double().mean())

    def time(self, weight: torch.Tensor, rows: int) -> float:
        """Predicted time over that of the dense product with so many rows of activations."""
        outputs, inputs = weight.shape
        fixed = self.each_output / inputs + self.each_input / outputs
        return self.slope * self.filled(weight) + fixed + self.each_weight + self.each_row * rows


def masked(slope: float, each_weight: float, each_row: float) -> Law:
    """The law of masked weights: single ones, few rows, streamed from memory."""
    return Law(1, 1, slope, 0, 0, each_weight, each_row, (1, FEW), streamed=True)


_FLOAT32 = {
    "single": Law(1, 1, 2.8, 19, 11),
    "quads": Law(4, 1, 1.3, 21, 11),
    "lanes": Law(16, 1, 1.25, 14, 1.5),
    "masked": masked(0.8, 0.16, 0.02),
}
LAWS: dict[tuple[str, str], dict[str, Law]] = {
    ("avx512", "float32"): _FLOAT32,
    ("avx512_vnni", "float32"): _FLOAT32,
    ("avx512_vnni", "bfloat16"): {
        "lanes": Law(16, 2, 1.15, 10, 1.5),
        "masked": masked(1.05, 0.16, 0.035),
    },
    ("avx512_vnni", "int8"): {
        "lanes": Law(16, 4, 1.45, 55, 12),
        "masked": masked(0.9, 0.18, 0.02),
    },
    ("amx", "float32"): _FLOAT32,
    ("amx", "bfloat16"): {
        "tiles": Law(16, 32, 1.3, 70, 5),
        "lanes": Law(16, 2, 9.5, 90, 7),
        "masked": masked(1.25, 0.18, 0.003),
    },
    ("amx", "int8"): {
        "tiles": Law(16, 64, 1.3, 150, 15),
        "lanes": Law(16, 4, 4.4, 190, 0),
        "masked": masked(1.2, 0.26, 0.005),
    },
}
"""By instruction set and the weights' type; a level that is missing was not measured: dense."""


def forms(plan: Plan, weights: Mapping[str, torch.Tensor], isa: str) -> dict[str, str]:
    """The kind that each sparse enough weight is packed as (``sparse_tiles``), by its name."""
    readers: dict[str, list[Step]] = {}
    for step in plan.steps:
        for name in step.constants.values():
            readers.setdefault(name, []).append(step)
    found: dict[str, str] = {}
    streamed = sum(weights[n].nbytes for n, c in plan.constants.items() if c.pack) >= STREAMED
    for name, constant in plan.constants.items():
        by = readers.get(name, [])
        if constant.pack != "dense" or not by or not all(_takes(s, name) for s in by):
            continue
        weight = weights[name]
        if weight.numel() == 0 or weight.ndim < 2:
            continue
        rows: list[int] = [s.fields["m"] for s in by]
        matrix = weight.reshape(weight.shape[0], -1)
        form = form_of(matrix, isa, (min(rows), max(rows)), streamed=streamed)
        if form is not None:
            found[name] = f"sparse_{form}"
    return found


def form_of(weight: torch.Tensor, isa: str, rows: tuple[int, int], *, streamed: bool) -> str | None:
    """The form in which a matrix multiplies fastest, None where that is the dense one.

    ``rows`` are the least and most rows of activations that it meets.
    """
    known = LAWS.get((isa, str(weight.dtype).removeprefix("torch.")), {})
    laws = {
        form: law
        for form, law in known.items()
        if law.rows[0] <= rows[0] and rows[1] <= law.rows[1] and (streamed or not law.streamed)
    }
    if not laws or float((weight == 0).double().mean()) < ZEROS:
        return None
    times = {form: law.time(weight, rows[1]) for form, law in laws.items()}
    best = min(times, key=lambda f: times[f])
    return best if times[best] <= WORTH else None


def _takes(step: Step, name: str) -> bool:
    """Whether a step can read this weight in a sparse form."""
    return step.op == "gemm" and step.constants.get("w") == name
