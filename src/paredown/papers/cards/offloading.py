"""Claim card of attention offloading: throughput per dollar of two kinds of devices against one."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from paredown import device
from paredown.cost.serving import load
from paredown.cost.serving.disaggregate import apart, exchanged, together
from paredown.figure import Figure, predicted
from paredown.nn.partial_attention import attend, merge
from paredown.papers.card import Card, Check, Experiment, Progress, Scale

MODELS = ("llama-33b", "llama-65b", "llama-3-70b")
CONTEXTS = (1024, 4096, 16384, 32768)
LONG, SHORT = 16384, 1024
COMPUTE, MEMORY = "h100-sxm", ("h20", "rtx-3090")


class AttentionOffloadCard(Card):
    """The cost model over published shapes, data sheets and purchase prices.

    Prices are of cards alone: no host, network or power. Not run: two processes with a pipe between
    them. The bandwidth is what a fifth of a step allows, of each device that holds weights.
    """

    key = "attention-offload"
    claim = (
        "attention on cheap memory-optimised devices gives 1.48x to 12.1x the throughput per "
        "dollar of one kind of device, most at long contexts, over networks of 400 Gbit/s"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "least_gain_at_long_contexts": 1.4,
        "most_gain_at_short_contexts": 1.4,
        "most_bytes_s_per_device": 50e9,
        "merged_off_whole": 1e-6,
        "exchange_off_the_formula": 0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Every model, context and kind of memory device; the best counts of each."""
        t = self.thresholds
        rows: list[dict[str, Any]] = []
        for memory in MEMORY:
            for name in MODELS:
                rows += [plan_row(name, memory, context) for context in CONTEXTS]
                progress(f"{name} with {memory}: {rows[-1]['gain']:.2f}x at {rows[-1]['context']}")
        long = [r["gain"] for r in rows if r["context"] >= LONG]
        short = [r["gain"] for r in rows if r["context"] == SHORT]
        wide = max(r["bytes_s_per_device"] for r in rows)
        alone = [r["gain_over_memory"] for r in rows]
        checks = [
            Check(f"least gain at contexts of {LONG} and more", min(long), ">=",
                  t["least_gain_at_long_contexts"], unit="x"),
            Check(f"most gain at {SHORT}", max(short), "<=", t["most_gain_at_short_contexts"],
                  unit="x"),
            Check("most bandwidth of a device with weights", wide, "<=",
                  t["most_bytes_s_per_device"], unit="B/s"),
            Check("merged parts off the whole", max(merged_off(s) for s in range(5)), "<=",
                  t["merged_off_whole"]),
            Check("exchanged bytes off the formula", sum(exchange_off(n) for n in MODELS), "<=",
                  t["exchange_off_the_formula"], unit="B"),
        ]  # fmt: skip
        far = [r["bytes_s_per_device"] for r in rows if r["context"] >= LONG]
        figures: dict[str, Figure] = {
            "least gain": predicted(round(min(r["gain"] for r in rows), 3), "x"),
            "most gain": predicted(round(max(r["gain"] for r in rows), 3), "x"),
            "least gain over the memory devices alone": predicted(round(min(alone), 3), "x"),
            "most gain over the memory devices alone": predicted(round(max(alone), 3), "x"),
            f"most bandwidth at contexts of {LONG} and more": predicted(max(far), "B/s"),
        }
        return Experiment(figures, checks, [0], {"plans": rows})


def plan_row(name: str, memory: str, context: int) -> dict[str, Any]:
    """The best of both kinds together against the best of each kind alone."""
    model, compute, other = load(name), device.load(COMPUTE), device.load(memory)
    one = together(model, compute, context=context)
    two = apart(model, compute, other, context=context)
    cheap = together(model, other, context=context)
    return {
        "model": name,
        "memory": memory,
        "context": context,
        "devices": one.model,
        "compute_devices": two.model,
        "memory_devices": two.attention,
        "batch": two.batch,
        "token_s": two.seconds,
        "gain": two.per_dollar / one.per_dollar,
        "gain_over_memory": two.per_dollar / cheap.per_dollar,
        "bytes_s_per_device": two.bytes_s / two.model,
    }


def merged_off(seed: int) -> float:
    """Attention over the old cache merged with the newest pair, against the whole, relative."""
    torch.manual_seed(seed)
    q, k, v = torch.randn(8, 1, 64), torch.randn(8, 513, 64), torch.randn(8, 513, 64)
    whole, _ = attend(q, k, v)
    both = merge(attend(q, k[:, :-1], v[:, :-1]), attend(q, k[:, -1:], v[:, -1:]))
    return float((both - whole).abs().max() / whole.abs().max())


def exchange_off(name: str) -> float:
    """Bytes by which what is exchanged differs from 2 (2 + 2 / G) hidden x layers."""
    model = load(name)
    group = model.heads / model.kv_heads
    return abs(exchanged(model) - 2 * (2 + 2 / group) * model.hidden * model.layers)
