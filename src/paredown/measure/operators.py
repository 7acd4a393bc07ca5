"""What a backend reaches on typical layers here: share of the peak by kind, and cost of a call.

Chains of equal layers are compiled through each backend and timed; a chain of tiny ones tells what
a call costs beside its work. Each layer does enough arithmetic per byte to be bound by arithmetic,
so the shares are those that `cost.price` divides the peak by.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from paredown.errors import ParedownError
from paredown.measure.child import await_turn, tell
from paredown.measure.fingerprint import best_time
from paredown.runtime import backend as backend_named
from paredown.runtime.quantized import QuantConv, QuantLinear
from paredown.workload import Workload

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "int8": torch.float32}
"""dtype of the peak -> dtype of the tensors; int8 layers take and give float32."""
INTEGER = {"conv", "depthwise", "linear"}
DEFAULT_LACKS = {"int8"}
LACKS: dict[str, set[str]] = {"openvino": set(), "onnxruntime": {"bfloat16"}}
"""What a backend has no kernels for on a CPU: not timed, and not listed as a failure either."""
SECONDS = 0.08
FEW, MANY = 8, 40
"""Layers in the two chains of tiny ones whose difference is the cost of a call."""
Timed = Callable[[], float]


@dataclass(frozen=True)
class Case:
    """A chain of ``layers`` equal layers on an input of ``shape``; ``macs`` of one layer."""

    kind: str
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]
    macs: int
    layers: int = 4


@dataclass
class Reached:
    """One backend: share of the peak by ``kind/dtype``, s per call and per run, what failed."""

    efficiency: dict[str, float] = field(default_factory=dict)
    overhead_s: float | None = None
    run_s: float | None = None
    failed: dict[str, str] = field(default_factory=dict)


class Attend(nn.Module):
    """Self-attention without projections, (batch, heads, tokens, channels)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Scaled dot-product attention of ``x`` with itself."""
        return F.scaled_dot_product_attention(x, x, x)


class Multiply(nn.Module):
    """A batched product of two activations, (batch, heads, tokens, channels)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x x^T x``, scaled so that a chain of them stays finite."""
        return (x @ x.transpose(-1, -2)) @ (x * 1e-3)


def _conv(channels: int, side: int, kernel: int, groups: int = 1, layers: int = 4) -> Case:
    make = partial(nn.Conv2d, channels, channels, kernel, padding=kernel // 2, groups=groups)
    macs = side * side * channels * kernel * kernel * channels // groups
    kind = "depthwise" if groups > 1 else "conv"
    return Case(kind, make, (1, channels, side, side), macs, layers)


def _linear(width: int, tokens: int) -> Case:
    return Case("linear", partial(nn.Linear, width, width), (1, tokens, width), tokens * width**2)


TINY = Case("linear", partial(nn.Linear, 16, 16), (1, 16), 256)


def cases() -> list[Case]:
    """The layers that are timed: shapes of small image classifiers and transformers, batch 1."""
    attention = (1, 6, 196, 64)
    products = 2 * 6 * 196 * 196 * 64
    return [
        _conv(64, 56, 3),
        _conv(256, 14, 3),
        _conv(192, 28, 1),
        _conv(144, 28, 3, groups=144, layers=8),
        _conv(576, 14, 3, groups=576, layers=8),
        _linear(384, 196),
        _linear(768, 128),
        Case("matmul", Multiply, attention, products),
        Case("attention", Attend, attention, products),
    ]


def measure(name: str, peaks: Mapping[str, float], threads: int) -> Reached:
    """Time every case and the cost of a call on one backend; run in a process of its own.

    ``peaks`` is MAC/s by dtype. A case that the backend refuses is named in ``failed``. Chains are
    lowered beside those of other backends, and timed alone (`Jobs.run_in_turns`).
    """
    torch.manual_seed(0)
    reached = Reached()
    why = backend_named(name).available()
    if why is not None:
        reached.failed[""] = why
        return reached
    plan = [(dtype, case, case.layers) for dtype, case in _plan(name, peaks)]
    plan += [("float32", TINY, FEW), ("float32", TINY, MANY)]
    chains: list[Timed | ParedownError] = []
    for i, (dtype, case, layers) in enumerate(plan):
        tell(f"{name}: compiling layers, {i + 1} of {len(plan)}")
        try:
            chains.append(_chain(name, case, layers, dtype, threads))
        except ParedownError as e:
            chains.append(e)
    await_turn()
    *chains, few, many = chains
    if isinstance(few, ParedownError) or isinstance(many, ParedownError):
        reached.failed["overhead"] = str(few if isinstance(few, ParedownError) else many)
    else:
        tell(f"{name}: cost of a call")
        reached.overhead_s, reached.run_s = _cost_of_a_call(few(), many())
    shares: dict[str, list[float]] = {}
    for (dtype, case, layers), chain in zip(plan, chains, strict=False):
        tell(f"{name}: {case.kind} {dtype}")
        key = f"{case.kind}/{dtype}"
        if isinstance(chain, ParedownError):
            reached.failed[key] = str(chain)
            continue
        seconds = chain()
        spent = seconds - (reached.run_s or 0.0) - layers * (reached.overhead_s or 0.0)
        ideal = layers * case.macs / peaks[dtype]
        # Overheads taken from tiny layers may exceed those of a fast large one: then they overlap.
        shares.setdefault(key, []).append(min(ideal / max(spent, seconds / 2), 1.0))
    reached.efficiency = {
        k: _geometric_mean(v) for k, v in shares.items() if k not in reached.failed
    }
    return reached


def _plan(name: str, peaks: Mapping[str, float]) -> Iterator[tuple[str, Case]]:
    for dtype in DTYPES:
        if dtype not in peaks or dtype in LACKS.get(name, DEFAULT_LACKS):
            continue
        for case in cases():
            if dtype != "int8" or case.kind in INTEGER:
                yield dtype, case


def _cost_of_a_call(few: float, many: float) -> tuple[float, float]:
    """Seconds per operator call, and per run beside them, from two chains of tiny layers."""
    per_call = max((many - few) / (MANY - FEW), 0.0)
    return per_call, max(few - FEW * per_call, 0.0)


def _chain(name: str, case: Case, layers: int, dtype: str, threads: int) -> Timed:
    """A chain compiled by a backend; calling it gives its fastest run in s."""
    parts = [case.make() for _ in range(layers)]
    if dtype == "int8":
        parts = [_integers(p) for p in parts]
    model = nn.Sequential(*parts).eval()
    if dtype != "int8":
        model = model.to(DTYPES[dtype])
    x = torch.randn(case.shape).mul_(0.1).to(DTYPES[dtype])
    workload = Workload(model=model.requires_grad_(False), inputs=(x,), name=f"{case.kind} chain")
    run = backend_named(name).lower(workload, threads=threads)
    run(x)
    return lambda: best_time(lambda: run(x), SECONDS)


def _integers(layer: nn.Module) -> nn.Module:
    """A static int8 layer of the same shape with arbitrary weights."""
    made: QuantLinear | QuantConv
    if isinstance(layer, nn.Linear):
        made = QuantLinear(layer.in_features, layer.out_features)
    else:
        assert isinstance(layer, nn.Conv2d)
        shape = tuple(layer.weight.shape)
        padding = layer.padding if isinstance(layer.padding, str) else tuple(layer.padding)
        made = QuantConv(shape, layer.stride, padding, layer.dilation, layer.groups)
    made.weight.data.random_(-127, 127)
    for buffer, value in ((made.scale, 1e-3), (made.in_scale, 1e-2), (made.in_zero, 128)):
        buffer.fill_(value)
    assert made.bias is not None
    made.bias.data.zero_()
    return made


def _geometric_mean(values: list[float]) -> float:
    return math.exp(sum(math.log(v) for v in values) / len(values))
