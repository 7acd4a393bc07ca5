"""Claim card of QLoRA (Dettmers et al. 2023, arXiv:2305.14314)."""

from __future__ import annotations

import copy
import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.analysis.formats import FORMATS, Fixed, Float
from paredown.figure import Figure, counted
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    mean_and_power,
)
from paredown.papers.cards import _text
from paredown.papers.cards._paired import Paired
from paredown.runtime.nf4 import NF4Linear
from paredown.techniques.quantize.nf4 import BLOCK, packed

WIDTH, RANK, ALPHA = 128, 8, 16.0
BATCH = 16
BASES = ("float32", "NF4, double", "NF4", "int4")
STATES = 16
"""Bytes a trained value takes in training: weight, gradient, and AdamW's two moments."""


def in_blocks(weight: Tensor, form: Fixed | Float) -> Tensor:
    """A matrix rounded to a format under a scale for each block of 64 values in row order."""
    flat = weight.detach().reshape(-1)
    blocks = F.pad(flat, (0, -flat.numel() % BLOCK)).reshape(-1, BLOCK)
    top = blocks.abs().amax(1, keepdim=True).clamp(min=1e-30)
    back = form.round(blocks / top * form.largest) / form.largest * top
    return back.reshape(-1)[: flat.numel()].reshape(weight.shape)


class Adapted(nn.Module):
    """A frozen float linear and a low-rank adapter (Hu et al. 2021, arXiv:2106.09685)."""

    def __init__(self, old: nn.Linear, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = nn.Parameter(old.bias.detach(), requires_grad=False)
        self.down = nn.Parameter(torch.empty(RANK, old.in_features))
        self.up = nn.Parameter(torch.zeros(old.out_features, RANK))

    def forward(self, x: Tensor) -> Tensor:
        """``(..., in)`` to ``(..., out)``."""
        low = F.linear(F.linear(x, self.down), self.up)
        return F.linear(x, self.weight, self.bias) + low * (ALPHA / RANK)


def adapted(model: nn.Module, base: str, seed: int) -> nn.Module:
    """A copy with an adapter on every linear of the blocks over a frozen base in a format."""
    new = copy.deepcopy(model).requires_grad_(False)
    generator = torch.Generator().manual_seed(seed)
    blocks = new.get_submodule("blocks")
    for path, old in list(blocks.named_modules()):
        if not isinstance(old, nn.Linear):
            continue
        if base.startswith("NF4"):
            layer: Any = packed(old, base != "NF4", RANK, ALPHA)
        else:
            weight = old.weight.detach()
            layer = Adapted(old, weight if base == "float32" else in_blocks(weight, INT4))
        bound = 1 / math.sqrt(old.in_features)
        layer.down.data.uniform_(-bound, bound, generator=generator)
        layer.down.requires_grad_(True)
        layer.up.requires_grad_(True)
        parent, _, leaf = path.rpartition(".")
        setattr(blocks.get_submodule(parent), leaf, layer)
    return new


INT4 = Fixed(3, symmetric=True)


def scores(seed: int, before: int, after: int, count: int) -> dict[str, float]:
    """Nats a byte on the second domain: untouched, fully tuned, and tuned through each base."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = _text.Decoder(WIDTH)
    _text.trained(model, "reference", before, BATCH, 3e-3, seed)
    found = {"before": _text.held_out(model, "source", count)}
    whole = copy.deepcopy(model)
    _text.trained(whole, "source", after, BATCH, 1e-3, seed + 100)
    found["all weights"] = _text.held_out(whole, "source", count)
    for base in BASES:
        tuned = adapted(model, base, seed)
        _text.trained(tuned, "source", after, BATCH, 4e-3, seed + 100)
        found[base] = _text.held_out(tuned, "source", count)
    return found


def squared_errors() -> dict[str, float]:
    """Mean squared error of normal weights in each 4-bit format, blocks of 64."""
    generator = torch.Generator().manual_seed(0)
    linear = nn.Linear(1024, 1024, bias=False)
    linear.weight.data.normal_(generator=generator)
    w = linear.weight.detach()
    e2m1 = FORMATS["e2m1"]
    assert isinstance(e2m1, Float)
    made = {
        "NF4": packed(linear, False).matrix(),
        "NF4, double": packed(linear, True).matrix(),
        "int4": in_blocks(w, INT4),
        "fp4": in_blocks(w, e2m1),
    }
    return {name: float((v.detach() - w).square().mean()) for name, v in made.items()}


def held_bytes() -> tuple[int, int, int]:
    """Bytes of the blocks' matrices in float32 and NF4, and of training the adapters with them."""
    model = _text.Decoder(WIDTH)
    floats = sum(m.weight.nbytes for m in model.blocks.modules() if isinstance(m, nn.Linear))
    forms = [m for m in adapted(model, "NF4, double", 0).modules() if isinstance(m, NF4Linear)]
    base = sum(t.nbytes for m in forms for t in (m.weight, m.scale, m.step, m.mean))
    trained = sum(p.numel() for m in forms for p in m.parameters() if p.requires_grad)
    return floats, base, base + STATES * trained


class QLoRACard(Card):
    """A byte decoder tuned from English to source code through 4-bit weights."""

    key = "qlora"
    claim = (
        "adapters trained through 4-bit NormalFloat weights reach what adapters on float weights "
        "reach; double quantization costs nothing; weights take a seventh"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "loss_over_lora": 0.01,
        "double_over_single": 0.002,
        "float32_over_nf4_bytes": 7.0,
        "nf4_over_int4_squared_error": 1.0,
        "nf4_over_fp4_squared_error": 1.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """From the language reference to the standard library's source, paired by seed."""
        t, quick = self.thresholds, scale == "quick"
        seeds = list(range(3 if quick else 10))
        steps = (100, 40, 128) if quick else (2000, 600, 1024)
        by = Paired.run(scores, seeds, *steps, progress=progress)

        def check(name: str, over: str, threshold: float) -> Check:
            mean, half = mean_and_power(by.over(name, over))
            return Check(f"nats, {name} over {over}", mean, "<=", threshold, half)

        floats, base, training = held_bytes()
        errors = squared_errors()
        checks = [
            check("NF4, double", "float32", t["loss_over_lora"]),
            check("NF4, double", "NF4", t["double_over_single"]),
            Check(
                "weight bytes, float32 over NF4", floats / base, ">=", t["float32_over_nf4_bytes"]
            ),
            Check(
                "squared error of normal weights, NF4 over int4",
                errors["NF4, double"] / errors["int4"],
                "<=",
                t["nf4_over_int4_squared_error"],
            ),
            Check(
                "squared error of normal weights, NF4 over fp4",
                errors["NF4, double"] / errors["fp4"],
                "<=",
                t["nf4_over_fp4_squared_error"],
            ),
        ]
        figures: dict[str, Figure] = {
            "weight bytes, float32": counted(floats, "B"),
            "weight bytes, NF4": counted(base, "B"),
            "weights and optimizer, all weights": counted(floats // 4 * STATES, "B"),
            "weights and optimizer, QLoRA": counted(training, "B"),
            **{f"squared error, {n}": counted(e, "") for n, e in errors.items()},
            **by.figures("nats a byte"),
        }
        return Experiment(figures, checks, seeds, {"nats": by.rows("tuned", "nats")})
