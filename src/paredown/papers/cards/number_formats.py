"""Claim card of Pychop: emulated number formats (Carson and Chen 2025, arXiv:2504.07835)."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.analysis.codes import decode
from paredown.analysis.emulate import emulated, round_after_step
from paredown.analysis.floats import Float
from paredown.analysis.formats import FORMATS
from paredown.analysis.rounding import Rounding
from paredown.figure import Figure, counted
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.cards import _scans, _task
from paredown.papers.cards._paired import Paired
from paredown.papers.timing import side_by_side

CASTS = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e5m2": torch.float8_e5m2,
}
SWEEP = {
    "16 bits (5, 10)": Float(5, 10),
    "12 bits (5, 6)": Float(5, 6),
    "10 bits (5, 4)": Float(5, 4),
    "8 bits (4, 3)": Float(4, 3),
    "8 bits (5, 2)": Float(5, 2),
    "6 bits (4, 1)": Float(4, 1),
    "4 bits (2, 1)": FORMATS["e2m1"],
}
UPDATES: tuple[Rounding, ...] = ("nearest-even", "zero", "stochastic", "coin")
STORE = Float(5, 2)
"""What trained weights are held in: 8 bits."""


def differing(values: int) -> int:
    """How many codes and casts of random float32 values differ from torch's own, any NaN alike."""
    generator = torch.Generator().manual_seed(0)
    codes = torch.randint(-(2**31), 2**31 - 1, (values,), generator=generator, dtype=torch.int32)
    x, wrong = codes.view(torch.float32), 0
    for name, dtype in CASTS.items():
        form = FORMATS[name]
        assert isinstance(form, Float)
        every = torch.arange(2**form.bits)
        held = every.to(torch.int16 if form.bits == 16 else torch.uint8).view(dtype).float()
        for ours, theirs in (
            (decode(form, every).float(), held),
            (form.round(x), x.to(dtype).float()),
        ):
            a, b = ours.view(torch.int32), theirs.view(torch.int32)
            wrong += int(((a != b) & ~(ours.isnan() & theirs.isnan())).sum())
    return wrong


def network() -> nn.Module:
    """A small CNN without norms: every number in it is a weight, a bias or an activation."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(32, 32, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(512, 10),
    )


def trained(seed: int, plan: _scans.Plan, rounding: Rounding | None = None) -> nn.Module:
    """The network after plain SGD with momentum, its weights held in `STORE` if ``rounding``."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = network()
    steps = plan.epochs * (720 // plan.batch)
    optimizer = torch.optim.SGD(model.parameters(), plan.rate, momentum=0.9)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    if rounding is not None:
        generator = torch.Generator().manual_seed(seed)
        round_after_step(optimizer, STORE, rounding, generator)
    batches = _scans.Scans(plan)
    for _ in range(plan.epochs):
        for (x,), y in batches():
            F.cross_entropy(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad(set_to_none=True)
    return model.eval()


def scores(seed: int, plan: _scans.Plan) -> dict[str, float]:
    """Held-out accuracy of one network in every format, and trained with every rounding."""
    judge = _scans.judge(plan)
    model = trained(seed, plan)
    found = {"float32": float(judge(model).mean())}
    with torch.no_grad():
        for name, form in SWEEP.items():
            found[name] = float(judge(emulated(model, form)).mean())
    for rounding in UPDATES:
        found[f"trained, {rounding}"] = float(judge(trained(seed, plan, rounding)).mean())
    return found


def rounders() -> list[tuple[str, Callable[[], Tensor]]]:
    """The native cast to half precision and back, and its emulation (in the timing child)."""
    x = torch.randn(1024, 1024)
    form = FORMATS["float16"]
    return [("native", lambda: x.half().float()), ("emulated", lambda: form.round(x))]


class PychopCard(Card):
    """Codes against torch's casts, formats of a trained CNN, and roundings of 8-bit updates."""

    key = "pychop"
    claim = (
        "customised formats and rounding modes are emulated exactly; accuracy keeps to about 8 "
        "bits and falls below; stochastic rounding trains where rounding to nearest stalls"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "differing": 0.0,
        "drop_at_8_bits": 0.01,
        "drop_at_4_bits": 0.05,
        "stochastic_minus_nearest": 0.05,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Noisy scans on a small CNN, paired by seed; weights held in e5m2 while training."""
        t, quick = self.thresholds, scale == "quick"
        progress("comparing codes and casts")
        values = 1 << (20 if quick else 26)
        wrong = differing(values)
        seeds = list(range(3 if quick else 10))
        plan = _scans.Plan(epochs=8 if quick else 30, rate=0.05)
        by = Paired.run(scores, seeds, plan, progress=progress)

        nearest, stochastic = "trained, nearest-even", "trained, stochastic"
        checks = [
            Check("codes and casts unlike torch's", wrong, "<=", t["differing"]),
            _task.mean_check(
                "drop, 8 bits (4, 3)",
                by.less("float32", "8 bits (4, 3)"),
                "<=",
                t["drop_at_8_bits"],
            ),
            _task.mean_check(
                "drop, 4 bits (2, 1)",
                by.less("float32", "4 bits (2, 1)"),
                ">=",
                t["drop_at_4_bits"],
            ),
            _task.mean_check(
                "accuracy, 8-bit weights trained by stochastic minus by nearest rounding",
                by.less(stochastic, nearest),
                ">=",
                t["stochastic_minus_nearest"],
            ),
        ]
        progress("timing the emulation")
        rows = side_by_side(rounders, seconds=4.0 if quick else 20.0, threads=1, limit_s=100)
        figures: dict[str, Figure] = {
            "values compared": counted(len(CASTS) * values, ""),
            "time, emulated over native cast": rows["emulated"]["ratio"],
            "a/a ratio": rows["a/a"]["ratio"],
            **by.figures("accuracy"),
        }
        table = by.rows("format", "accuracy")
        return Experiment(figures, checks, seeds, {"accuracy": table})
