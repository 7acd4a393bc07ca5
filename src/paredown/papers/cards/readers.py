"""Claim card of ONNX-Net: one reader of text ranks networks of a space it hardly saw."""

from __future__ import annotations

from collections.abc import Callable
from random import Random
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.cost.reading import Ridge, tokens
from paredown.cost.reading.networks import Reader
from paredown.figure import Figure, measured
from paredown.graph.capture import capture
from paredown.graph.text import text
from paredown.papers.card import (
    Card,
    Check,
    Experiment,
    Progress,
    Scale,
    mean_and_power,
    mean_figure,
)
from paredown.papers.cards._task import pool
from paredown.papers.cards.texts import kendall
from paredown.workload import Workload
from paredown.workloads.digits import split

NETWORKS = {"quick": 50, "full": 120}
DRAWS = {"quick": 5, "full": 10}
SHOWN = 20
"""Networks of the second space that are trained on."""
SEEDS, EPOCHS, BATCH, NOISE = 2, 6, 40, 0.8
READING_EPOCHS = 25
OPS = ("conv3", "conv1", "depthwise", "pool", "skip", "none")
PARTS = ("mlp", "attention", "mix", "gate")


class OnnxNetCard(Card):
    """Scanned digits of 8 x 8 under noise; two spaces: cells of convolutions, blocks of tokens.

    No pretrained language model: 1-D convolutions over tokens trained from nothing to rank, with
    ridge on hashed n-grams beside them. Accuracy is the mean of two short trainings.
    """

    key = "onnx-net"
    claim = (
        "one surrogate that reads networks as text ranks those of spaces it saw few samples of, "
        "better than parameters and work do (without pretrained weights here)"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "tau_on_the_unseen_space": 0.3,
        "tau_over_counts": 0.0,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Train all networks, then readers on one space and a few networks of the other."""
        t = self.thresholds
        rows = networks(NETWORKS[scale])
        progress(f"{len(rows)} networks: " + ", ".join(
            f"{s} {np.mean([r['accuracy'] for r in rows if r['space'] == s]):.3f}"
            for s in SPACES))  # fmt: skip
        cells = [r for r in rows if r["space"] == "cells"]
        blocks = [r for r in rows if r["space"] == "blocks"]
        with pool(2) as workers:
            runs = [workers.submit(ranked, cells, blocks, d) for d in range(DRAWS[scale])]
            found = [r.result() for r in runs]
        ours = [f["reader"] for f in found]
        counts = [max(f["params"], f["macs"]) for f in found]
        tau, power = mean_and_power(ours)
        above, spread = mean_and_power(np.subtract(ours, counts).tolist())
        checks = [
            Check(f"Kendall's tau on the other space, {SHOWN} of it seen", tau, ">=",
                  t["tau_on_the_unseen_space"], power),
            Check("the same above that of parameters or MACs", above, ">=", t["tau_over_counts"],
                  spread),
        ]  # fmt: skip
        figures: dict[str, Figure] = {
            f"tau, {k}": mean_figure([f[k] for f in found], "")
            for k in ("reader", "ridge", "params", "macs", "reader, none seen", "ridge, none seen")
        }
        for space, mine in (("cells", cells), ("blocks", blocks)):
            one, two = ([r["scores"][i] for r in mine] for i in range(2))
            figures[f"tau between two trainings, {space}"] = measured(kendall(one, two), "")
        shown = [{k: v for k, v in r.items() if k != "written"} for r in rows]
        return Experiment(figures, checks, list(range(DRAWS[scale])),
                          {"networks": shown, "draws": found})  # fmt: skip


class Cell(nn.Module):
    """Three values, each the sum of one operator of every value before it."""

    def __init__(self, width: int, ops: list[str]) -> None:
        super().__init__()
        self.ops = ops
        self.parts = nn.ModuleList([_operator(o, width) for o in ops])

    def forward(self, x: Tensor) -> Tensor:
        """The same shape."""
        values, at = [x], 0
        for _ in range(2):
            terms: list[Tensor] = []
            for before in values:
                if self.ops[at] != "none":
                    terms.append(self.parts[at](before))
                at += 1
            values.append(sum(terms[1:], terms[0]) if terms else torch.zeros_like(x))
        return values[-1]


def _operator(name: str, width: int) -> nn.Module:
    if name in ("conv3", "conv1", "depthwise"):
        kernel = 1 if name == "conv1" else 3
        groups = width if name == "depthwise" else 1
        conv = nn.Conv2d(width, width, kernel, padding=kernel // 2, groups=groups, bias=False)
        return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU())
    return nn.AvgPool2d(3, 1, 1, count_include_pad=False) if name == "pool" else nn.Identity()


def cells(seed: int) -> nn.Module:
    """A network of one to three cells on 8 x 8, then 4 x 4 pixels."""
    r = Random(seed)
    width, count = r.choice((4, 8, 12, 16)), r.randint(1, 3)
    ops = [r.choice(OPS) for _ in range(3)]
    return nn.Sequential(
        nn.Conv2d(1, width, 3, padding=1), *[Cell(width, ops) for _ in range(count)],
        nn.Conv2d(width, 2 * width, 3, 2, 1), nn.ReLU(), *[Cell(2 * width, ops)] * r.randint(0, 1),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(2 * width, 10),
    )  # fmt: skip


class Part(nn.Module):
    """A residual part on tokens: an MLP, attention, a mix of tokens, a gate."""

    def __init__(self, kind: str, width: int, *, norm: bool) -> None:
        super().__init__()
        self.kind = kind
        self.norm = nn.LayerNorm(width) if norm else nn.Identity()
        self.into = nn.Linear(width, {"mlp": 2, "attention": 3, "gate": 2}.get(kind, 1) * width)
        self.mix = nn.Linear(8, 8) if kind == "mix" else nn.Identity()
        self.out = nn.Linear(2 * width if kind == "mlp" else width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8, width), the same shape."""
        y = self.into(self.norm(x))
        if self.kind == "mlp":
            y = F.gelu(y)
        elif self.kind == "attention":
            q, k, v = y[:, None].chunk(3, -1)
            y = F.scaled_dot_product_attention(q, k, v)[:, 0]
        elif self.kind == "mix":
            y = self.mix(y.transpose(1, 2)).transpose(1, 2)
        else:
            a, b = y.chunk(2, -1)
            y = a * torch.sigmoid(b)
        return x + self.out(y)


class Rows(nn.Module):
    """An image (batch, 1, 8, 8) as eight tokens."""

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 8, 8)."""
        return x[:, 0]


def blocks(seed: int) -> nn.Module:
    """A network of none to four parts on rows as tokens; all of them or their mean at the end."""
    r = Random(seed)
    width, norm, whole = r.choice((4, 8, 16, 32)), r.random() < 0.5, r.random() < 0.5
    parts = [Part(r.choice(PARTS), width, norm=norm) for _ in range(r.randint(0, 4))]
    tail = [nn.Flatten(), nn.Linear(8 * width, 10)] if whole else [
        nn.AdaptiveAvgPool2d((1, width)), nn.Flatten(), nn.Linear(width, 10)]  # fmt: skip
    return nn.Sequential(Rows(), nn.Linear(8, width), *parts, *tail)


SPACES: dict[str, Callable[[int], nn.Module]] = {"cells": cells, "blocks": blocks}


def networks(count: int) -> list[dict[str, Any]]:
    """So many networks of each space, trained in two worker processes."""
    with pool(2) as workers:
        runs = [workers.submit(row, s, i) for s in SPACES for i in range(count)]
        return [r.result() for r in runs]


def row(space: str, seed: int) -> dict[str, Any]:
    """A network: its text, its counts, its accuracy in two trainings."""
    torch.set_num_threads(1)
    torch.manual_seed(seed)
    graph = capture(Workload(SPACES[space](seed).eval(), (torch.zeros(1, 1, 8, 8),)))
    scores = [trained(space, seed, i) for i in range(SEEDS)]
    return {"space": space, "seed": seed, "written": text(graph, "nodes"), "macs": graph.macs,
            "params": graph.params, "scores": scores,
            "accuracy": float(np.mean(scores))}  # fmt: skip


def trained(space: str, seed: int, again: int) -> float:
    """Held-out accuracy after a short training; the noise of the pictures is fixed by ``again``."""
    torch.manual_seed(1000 * again + seed)
    net = SPACES[space](seed)
    x, y = split("train", 8)
    optimizer = torch.optim.AdamW(net.parameters(), 5e-3)
    steps = EPOCHS * (len(x) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1e-2, steps, pct_start=0.2)
    for _ in range(steps):
        at = torch.randint(len(x), (BATCH,))
        loss = F.cross_entropy(net(x[at] + NOISE * torch.randn(BATCH, 1, 8, 8)), y[at])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    held, want = split("held-out", 8)
    noise = torch.randn(held.shape, generator=torch.Generator().manual_seed(7))
    with torch.inference_mode():
        return float((net.eval()(held + NOISE * noise).argmax(1) == want).float().mean())


def ranked(known: list[dict[str, Any]], other: list[dict[str, Any]], draw: int) -> dict[str, float]:
    """Kendall's tau on what is left of the other space, for one draw of what is shown of it."""
    torch.set_num_threads(1)
    order = np.random.default_rng(draw).permutation(len(other))
    shown, left = ([other[i] for i in part] for part in (order[:SHOWN], order[SHOWN:]))
    true = [r["accuracy"] for r in left]
    found: dict[str, float] = {k: kendall([r[k] for r in left], true) for k in ("params", "macs")}
    held = [tokens(r["written"]) for r in left]
    for name, seen in (("", [*known, *shown]), (", none seen", known)):
        words, labels = [tokens(r["written"]) for r in seen], [r["accuracy"] for r in seen]
        reader = Reader("conv1d", loss="rank").fit(words, labels, epochs=READING_EPOCHS, seed=draw)
        found[f"reader{name}"] = kendall(reader.predict(held).tolist(), true)
        found[f"ridge{name}"] = kendall(Ridge().fit(words, labels).predict(held).tolist(), true)
    return found
