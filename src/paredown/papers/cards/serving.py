"""Claim card of DeepSpeed-Inference: splits, schedules, streamed weights, dispatch by tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch

from paredown import device
from paredown.cost.serving import load, names
from paredown.cost.serving.parallel import (
    Split,
    circulating,
    draining,
    exchange_steps,
    simulate,
    splits,
    stage,
)
from paredown.cost.serving.streaming import BYTES, break_even, home, largest_batch, streamed
from paredown.cost.tables import peak
from paredown.figure import Figure, counted, predicted
from paredown.nn import dispatch
from paredown.papers.card import Card, Check, Experiment, Progress, Scale
from paredown.papers.timing import side_by_side

WORKSTATION = "a6000-workstation"
STREAMED = ("gpt-neox-20b", "llama-65b", "lm-175b", "lm-530b")
PROMPT = 2048
SHAPE = (1024, 64, 256, 32)
"""Tokens, experts, width and seats of the timed dispatch."""


class DeepSpeedCard(Card):
    """The cost and placement half: kernels on GPUs cannot be timed here.

    Left out: latency against FasterTransformer, fused kernels, weights on a disk of this machine.
    """

    key = "deepspeed-inference"
    claim = (
        "keeping micro-batches circulating gives more than 1.5x the throughput of draining the "
        "pipeline; weights in host memory or on NVMe allow 25x larger models than the GPU holds, "
        "at over half of its peak; a table dispatches tokens to experts over 3x faster than "
        "one-hot products"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "schedules_off_the_formulas": 0,
        "throughput_of_circulating_over_draining": 1.5,
        "larger_models": 25,
        "share_of_peak_of_the_largest": 0.5,
        "dispatch_that_differs": 0,
        "table_over_one_hot": 3.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Formulas and simulations; the dispatch is run and timed."""
        t = self.thresholds
        off = sum(
            max(s.start for s in simulate(p, m, k, drain=drain)) + 1 != formula(p, m, k)
            for p in range(1, 7)
            for m in range(1, 9)
            for k in (1, 2, 5)
            for drain, formula in ((False, circulating), (True, draining))
        )
        gain = draining(5, 5, 50) / circulating(5, 5, 50)
        where = device.load(WORKSTATION)
        rows = [streaming_row(name) for name in STREAMED]
        last = rows[-1]
        size = {n: load(n).parameters for n in names()}
        held = max(s for s in size.values() if BYTES * s <= where.levels[0].capacity_bytes)
        largest = max(s for s in size.values() if BYTES * s <= where.memory.capacity_bytes)
        progress(f"{largest / held:.1f}x larger, {last['share']:.0%} of the peak")
        timed = side_by_side(
            dispatches, seconds=2.0 if scale == "quick" else 8.0, threads=1, limit_s=60
        )
        ratio: Figure = timed["table"]["ratio"]
        low, high = ratio.spread or (ratio.known(), ratio.known())
        faster = 1 / ratio.known()
        checks = [
            Check("schedules off the formulas, of 288", off, "<=", t["schedules_off_the_formulas"]),
            Check("throughput of 5 stages kept full over drained, 50 tokens", gain, ">=",
                  t["throughput_of_circulating_over_draining"]),
            Check("largest model over the largest that the GPU holds", largest / held, ">=",
                  t["larger_models"]),
            Check(f"share of the peak, {last['model']} from NVMe, prompts of {PROMPT}",
                  last["share"], ">=", t["share_of_peak_of_the_largest"]),
            Check("dispatches that differ", differing(), "<=", t["dispatch_that_differs"]),
            Check("table over one-hot", faster, ">=", t["table_over_one_hot"],
                  max(1 / low - faster, faster - 1 / high), "x"),
        ]  # fmt: skip
        splits_ = [r for batch in (1, 32) for r in split_rows("lm-175b", batch)]
        best = min((r for r in splits_ if r["batch"] == 1), key=lambda r: r["token_s"])
        plain, together = exchange_steps(128, 8)
        figures: dict[str, Figure] = {
            "break-even tokens of a pass, from host memory": predicted(
                round(break_even(where, where.levels[1])), "tokens"
            ),
            "the same from NVMe": predicted(round(break_even(where, where.memory)), "tokens"),
            "GPT-3 175B on a DGX A100, batch 1, best split": predicted(best["token_s"], "s"),
            "tensor-parallel devices of that split": counted(best["tensor"], ""),
            "all-to-all steps of 128 devices, plain": counted(plain, ""),
            "the same with 8 sharing tensors": counted(together, ""),
        }
        return Experiment(figures, checks, [0], {"streaming": rows, "splits": splits_})


def streaming_row(name: str) -> dict[str, Any]:
    """The largest prompt pass of a model on the workstation: what bounds it, share of the peak."""
    model, where = load(name), device.load(WORKSTATION)
    batch = largest_batch(model, where, tokens=PROMPT, cached=False)
    found = streamed(model, where, batch=batch, tokens=PROMPT)
    macs = found.tokens * (model.active_parameters + model.attention_macs(PROMPT // 2))
    return {
        "model": name,
        "level": home(model, where).name,
        "batch": batch,
        "tokens": found.tokens,
        "fetch_s": found.fetch,
        "compute_s": found.compute,
        "seconds": found.seconds,
        "prefetch_gain": found.synchronous / found.seconds,
        "share": found.share(macs, peak(where, "float16")),
    }


def split_rows(name: str, batch: int) -> list[dict[str, Any]]:
    """Seconds per token of every split of a DGX A100, after 1024 tokens."""
    model, node = load(name), device.load("dgx-a100")
    rows: list[dict[str, Any]] = []
    for split in splits(node):
        micro = max(1, batch // split.pipeline)
        one = stage(model, node, Split(split.tensor, split.pipeline), batch=micro, context=1024)
        rows.append(
            {"model": name, "batch": batch, "tensor": split.tensor, "pipeline": split.pipeline,
             "token_s": one.seconds * split.pipeline, "bound": one.bound}
        )  # fmt: skip
    return rows


def differing() -> int:
    """Seeds of ten for which one-hot products and tables give different numbers."""
    tokens, experts, width, capacity = SHAPE
    wrong = 0
    for seed in range(10):
        torch.manual_seed(seed)
        x, gate = torch.randn(tokens, width), torch.rand(tokens)
        expert = torch.randint(experts, (tokens,))
        mask = dispatch.one_hot_mask(expert, experts, capacity, x.dtype)
        a = dispatch.dispatch_one_hot(x, mask)
        b = dispatch.dispatch_table(x, expert, experts, capacity)
        ya, yb = (
            dispatch.combine_one_hot(a, mask, gate),
            dispatch.combine_table(b, expert, gate),
        )
        wrong += not (torch.equal(a, b) and torch.equal(ya, yb))
    return wrong


def dispatches() -> Sequence[tuple[str, Callable[[], Any]]]:
    """Tokens to experts and back, both ways; masks and seats are made each time."""
    tokens, experts, width, capacity = SHAPE
    x, gate = torch.randn(tokens, width), torch.rand(tokens)
    expert = torch.randint(experts, (tokens,))

    def one_hot() -> torch.Tensor:
        mask = dispatch.one_hot_mask(expert, experts, capacity, x.dtype)
        return dispatch.combine_one_hot(dispatch.dispatch_one_hot(x, mask), mask, gate)

    def table() -> torch.Tensor:
        rows = dispatch.dispatch_table(x, expert, experts, capacity)
        return dispatch.combine_table(rows, expert, gate)

    return [("one-hot", one_hot), ("table", table)]
