"""Claim card of trainable fixed point (QFX: Dai et al. 2024, arXiv:2401.17544)."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.figure import counted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.runtime.fixed_point import digits, run_in_integers
from paredown.runtime.forms_fixed import FixedConv, FixedLinear
from paredown.runtime.torch_lowering import held_bytes
from paredown.techniques.quantize.qfx import QFX
from paredown.workload import TrainingData, Workload
from paredown.workloads.fit import Phase, fit

WIDTHS = (8, 5, 4)
STARTS: dict[str, dict[str, Any]] = {
    "range": {"steps": 0, "start": "range"},
    "least error": {"steps": 0},
    "held": {"learn": False},
    "learned": {},
}


class Block(nn.Module):
    """Two 3 x 3 convolutions with norms and a shortcut, a strided one where channels grow."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = (
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.conv2, self.norm2 = (
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        same = stride == 1 and inputs == outputs
        short = (nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.short = nn.Identity() if same else nn.Sequential(*short)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, inputs, height, width)`` to ``outputs`` channels."""
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + self.short(x))


class Residual(nn.Module):
    """A small residual network for scans of 16 x 16."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(1, 12, 3, 2, 1, bias=False), nn.BatchNorm2d(12)
        self.blocks = nn.Sequential(Block(12, 12, 1), Block(12, 24, 2))
        self.head = nn.Linear(24, 10)

    def forward(self, x: Tensor) -> Tensor:
        """``(batch, 1, 16, 16)`` to logits."""
        return self.head(self.blocks(F.relu(self.norm(self.stem(x)))).mean((2, 3)))


def scores(seed: int, epochs: int, steps: int) -> dict[str, float]:
    """Held-out accuracy in floats and in fixed point, every way; how far integers lie off."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    how = _scans.Plan(epochs, rate=4e-3, noise=0.5)
    judge, scans = _scans.judge(how), _scans.Scans(how)
    net = Residual()
    fit(net, [Phase(scans, epochs)], rate=how.rate, seed=seed, loss=F.cross_entropy)
    net.eval()
    found = {"float32": float(judge(net).mean())}
    seen = [batch[0][0] for batch in scans()][:8]
    data = TrainingData(scans, F.cross_entropy)
    floats = Workload(net, (judge.images[:64],), training=data, original=net, calibration=seen)
    graph = capture(floats)
    ways = {f"{name}, {bits} bits": {"bits": bits, **knobs}
            for bits in WIDTHS for name, knobs in STARTS.items()}  # fmt: skip
    ways |= {f"{hot} digits, 8 bits": {"hot": hot} for hot in (1, 2)}
    found["integers off"] = found["digits over"] = 0.0
    for name, knobs in ways.items():
        settings: dict[str, Any] = {"steps": steps, "seed": seed, **knobs}
        way = QFX(**settings)
        fixed = way.apply(floats, way.sites(floats, graph)).workload
        found[name] = float(judge(fixed.model).mean())
        off = run_in_integers(fixed.model, *fixed.inputs) != fixed.call()
        found["integers off"] += float(off.sum())
        found["digits over"] += digits_over(fixed.model, way.hot)
        if name == "1 digits, 8 bits":
            found["bytes"] = held_bytes(net) / held_bytes(fixed.model)
    return found


def digits_over(model: nn.Module, hot: int) -> int:
    """Weights with more than ``hot`` signed digits (0: any number is allowed)."""
    forms = [m for m in model.modules() if isinstance(m, (FixedLinear, FixedConv))]
    if not hot:
        return 0
    counts = [digits(m.codes().values, m.numbers.weight_bits).abs().sum(0) for m in forms]
    return sum(int((c > hot).sum()) for c in counts)


class QFXCard(Card):
    """A residual network with norms, inputs and biases in 8 to 4 bits, weights in 8."""

    key = "qfx"
    claim = (
        "element-wise layers in fewer bits and higher accuracy than fixed point after training; "
        "software equals hardware bit for bit; weights of few digits need no multipliers"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "integers_off": 0.0,
        "digits_over": 0.0,
        "learned_minus_best_after_at_5": 0.01,
        "learned_minus_best_after_at_4": 0.01,
        "learned_minus_best_after_at_8": -0.01,
        "learned_minus_held_at_4": 0.0,
        "two_digits_minus_dense": -0.01,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans, paired by seed; points after training are the better of two rules."""
        t, quick = self.thresholds, scale == "quick"
        epochs, steps = (8, 90) if quick else (40, 600)
        seeds = range(4 if quick else 10)
        by = Paired.run(scores, seeds, epochs, steps, progress=progress)

        def after(bits: int) -> str:
            return max(("range", "least error"), key=lambda n: by.mean(f"{n}, {bits} bits"))

        checks = [
            Check("outputs that integers change", sum(by["integers off"]), "<=", t["integers_off"]),
            Check("weights of too many digits", sum(by["digits over"]), "<=", t["digits_over"]),
            *(
                _task.mean_check(
                    f"accuracy at {bits} bits, learned minus after training ({after(bits)})",
                    by.less(f"learned, {bits} bits", f"{after(bits)}, {bits} bits"),
                    ">=",
                    t[f"learned_minus_best_after_at_{bits}"],
                )
                for bits in WIDTHS
            ),
            _task.mean_check(
                "accuracy at 4 bits, points learned minus held while weights are trained",
                by.less("learned, 4 bits", "held, 4 bits"),
                ">=",
                t["learned_minus_held_at_4"],
            ),
            _task.mean_check(
                "accuracy at 8 bits, two digits minus all",
                by.less("2 digits, 8 bits", "learned, 8 bits"),
                ">=",
                t["two_digits_minus_dense"],
            ),
        ]
        names = [n for n in by if n not in ("integers off", "digits over", "bytes")]
        ratio = by["bytes"][0]
        figures = {
            **by.figures("accuracy", names),
            "bytes, float32 over one digit": counted(ratio, "x"),
        }
        return Experiment(
            figures, checks, list(seeds), {"accuracy": by.rows("way", "accuracy", names)}
        )
