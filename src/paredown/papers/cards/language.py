"""Claim card of LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor

from paredown.figure import Figure, counted
from paredown.graph.capture import capture
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
from paredown.papers.timing import side_by_side
from paredown.runtime import backend
from paredown.technique import Technique
from paredown.techniques.quantize.dynamic_int8 import DynamicInt8
from paredown.techniques.quantize.llm_int8 import LLMInt8
from paredown.workload import Workload

WIDTH = 256
COLUMNS = (17, 101)
"""Two of 256: under 1 % of a layer's inputs, as few as the paper finds."""

FACTOR = 40.0

WAYS: dict[str, Technique] = {
    "one range": DynamicInt8(smooth=False),
    "vector-wise": LLMInt8(columns=0),
    "LLM.int8()": LLMInt8(columns=len(COLUMNS)),
}


def decoder(seed: int, steps: int) -> _text.Decoder:
    """A byte decoder trained on the language reference, then given outliers in every block."""
    torch.manual_seed(seed)
    model = _text.Decoder(WIDTH)
    _text.trained(model, "reference", steps, 16, 2e-3, seed)
    for block in model.blocks:
        assert isinstance(block, _text.Block)
        _text.inject(block.norm1, [block.attn.qkv], COLUMNS, FACTOR)
        _text.inject(block.norm2, [block.fc1], COLUMNS, FACTOR)
    return model.eval()


def int8(model: torch.nn.Module, technique: Technique) -> Workload:
    """The decoder after a technique at every layer but the head, calibrated on training text."""
    some = _text.windows("reference", "train")[:32, :-1]
    work = Workload(model, (some[:1],), calibration=list(some.split(8)))
    sites = technique.sites(work, capture(work)).only(except_=["head"])
    return technique.apply(work, sites).workload


def scores(seed: int, steps: int, count: int) -> dict[str, float]:
    """Nats a byte of one decoder as it is and in each way, on torch's own integer operators."""
    torch.set_num_threads(1)
    model = decoder(seed, steps)
    found = {"float32": _text.held_out(model, "reference", count)}
    for name, technique in WAYS.items():
        run = backend("eager").lower(int8(model, technique), threads=1)
        lost = [r for r in run.executed() if r.fallback]
        assert not lost, lost
        found[name] = _text.held_out(run.step, "reference", count)
    return found


def shares() -> tuple[float, float]:
    """Share of the inputs' values multiplied in int8, and weight bytes over float16's."""
    torch.manual_seed(0)
    model = _text.Decoder(WIDTH)
    change = int8(model, WAYS["LLM.int8()"])
    layers = {p: m for p, m in model.blocks.named_modules() if isinstance(m, torch.nn.Linear)}
    values = sum(m.in_features for m in layers.values())
    floats = len(layers) * len(COLUMNS)
    held = sum(
        t.numel() * t.element_size()
        for p in layers
        for n, t in change.model.get_submodule(f"blocks.{p}").state_dict().items()
        if n != "bias"
    )
    return 1 - floats / values, held / sum(2 * m.weight.numel() for m in layers.values())


def runs() -> list[tuple[str, Callable[[], Any]]]:
    """Prefill of a wider decoder in float32, LLM.int8() and plain int8 (in the timing child)."""
    torch.manual_seed(0)
    model = _text.Decoder(1024, heads=16).eval()
    x: Tensor = _text.windows("reference", "held-out")[:1, :-1]
    made: list[tuple[str, Callable[[], Any]]] = []
    for name in ("float32", "LLM.int8()", "one range"):
        work = Workload(model, (x,)) if name == "float32" else int8(model, WAYS[name])
        run = backend("eager").lower(work, threads=1)
        made.append((name, lambda run=run: run.step(x)))
    return made


class LLMInt8Card(Card):
    """A trained byte decoder with injected outlier columns: nats, bytes, time."""

    key = "llm-int8"
    claim = (
        "with outlier columns in float, int8 linears lose nothing where plain int8 collapses, over "
        "99 % of the values are in 8 bits, and weights take half of float16"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "loss_over_float": 0.002,
        "plain_loss_over_float": 0.02,
        "share_int8": 0.99,
        "bytes_over_float16": 0.55,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Outliers 40 times the rest in two of 256 columns after every norm, the function kept."""
        t, quick = self.thresholds, scale == "quick"
        if not torch.cpu._is_vnni_supported():  # pyright: ignore[reportPrivateUsage]
            return Experiment({}, [], [], untestable="no VNNI: int8 products would be simulated")
        seeds = list(range(3 if quick else 10))
        steps, count = (120, 256) if quick else (2000, 2048)
        by = Paired.run(scores, seeds, steps, count, progress=progress)
        share, size = shares()

        def check(name: str, op: Any, threshold: float) -> Check:
            mean, half = mean_and_power(by.over(name, "float32"))
            return Check(f"nats over float32's, {name}", mean, op, threshold, half)

        checks = [
            check("LLM.int8()", "<=", t["loss_over_float"]),
            check("one range", ">=", t["plain_loss_over_float"]),
            check("vector-wise", ">=", t["plain_loss_over_float"]),
            Check("share of values in int8", share, ">=", t["share_int8"]),
            Check("weight bytes over float16's", size, "<=", t["bytes_over_float16"]),
        ]
        progress("timing a decoder of width 1024")
        rows = side_by_side(runs, seconds=6.0 if quick else 30.0, threads=1, limit_s=200)
        figures: dict[str, Figure] = {
            "share of values in int8": counted(share, ""),
            "weight bytes over float16's": counted(size, "x"),
            "time, LLM.int8() over float32": rows["LLM.int8()"]["ratio"],
            "time, one range over float32": rows["one range"]["ratio"],
            "a/a ratio": rows["a/a"]["ratio"],
            **by.figures("nats a byte"),
        }
        return Experiment(figures, checks, seeds, {"nats": by.rows("way", "nats")})
