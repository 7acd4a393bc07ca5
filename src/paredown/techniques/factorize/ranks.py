"""Which ranks trained pairs are deployed at: by loss over all layers, or narrower than trained.

Horvath et al. 2024 (Maestro), arXiv:2308.14929, section 3.3: train once, deploy at any rank.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from paredown.errors import NotApplicable
from paredown.runtime.forms_lowrank import LowRankConv, LowRankLinear
from paredown.techniques.distance import distillation
from paredown.techniques.factorize.common import FACTORS, break_even, limit
from paredown.techniques.factorize.ordered import Ordered
from paredown.workload import TrainingData

NOTCHES = 8
"""Ranks that ``greedy`` tries per layer, evenly up to break-even, beside the whole layer."""


@torch.no_grad()
def greedy(
    model: nn.Module,
    layers: Mapping[str, Ordered],
    data: TrainingData,
    teacher: nn.Module,
    share: float,
) -> dict[str, int]:
    """Ranks per layer that keep ``share`` of all the layers' weights and lose little.

    Layers come with their whole rank as limit, which they get back.

    Each layer is cut alone to a few ranks on two training batches; then the cut that loses least
    per weight saved is taken until the rest fits. A layer that stays whole counts all its weights.
    """
    model.eval()
    teacher.eval()
    batches = list(itertools.islice(data.batches(), 2))
    wanted = [teacher(*inputs) for inputs, _ in batches]

    def lost() -> float:
        pairs = zip(batches, wanted, strict=True)
        return sum(float(distillation(model(*i), w, t, 1.0)) for (i, t), w in pairs) / len(batches)

    ladder: dict[str, list[tuple[int, int, float]]] = {}  # path -> (rank, weights, loss), falling
    for path, layer in layers.items():
        rows, columns = len(layer.second), layer.first.shape[1]
        top = break_even(rows, columns)
        tried = {max(1, int(top * n / NOTCHES)) for n in range(1, NOTCHES)}
        steps: list[tuple[int, int, float]] = []
        full = layer.limit
        for rank in sorted({full, *(r for r in tried if r < full)}, reverse=True):
            layer.limit = rank
            steps.append((rank, min(rank * (rows + columns), rows * columns), lost()))
        layer.limit = full
        ladder[path] = steps
    at = dict.fromkeys(layers, 0)
    room = share * sum(len(m.second) * m.first.shape[1] for m in layers.values())
    while sum(ladder[p][i][1] for p, i in at.items()) > room:
        moves = [
            ((ladder[p][j][2] - ladder[p][i][2]) / (ladder[p][i][1] - ladder[p][j][1]), p, j)
            for p, i in at.items()
            for j in range(i + 1, len(ladder[p]))
            if ladder[p][j][1] < ladder[p][i][1]
        ]
        if not moves:
            break
        _, path, to = min(moves)
        at[path] = to
    return {p: ladder[p][i][0] for p, i in at.items()}


def narrowed(model: nn.Module, share: float) -> nn.Module:
    """A copy of a network whose trained pairs keep only their leading components.

    ``share`` is of the weights that each layer had before it was split; ranks never rise. Fresh
    batch-norm statistics are the caller's (`recover.recalibrate`). Raises ``NotApplicable`` where
    no layer is a pair.
    """
    out = copy.deepcopy(model)
    pairs = [(p, m) for p, m in out.named_modules() if isinstance(m, (LowRankLinear, LowRankConv))]
    if not pairs:
        raise NotApplicable("narrowed: no layer of the network is a low-rank pair")
    for path, pair in pairs:
        old: list[Any] = [getattr(pair, name) for name in FACTORS]
        rank = min(pair.rank, limit(share, len(old[1].weight), old[0].weight[0].numel()))
        settings: dict[str, Any] = {**pair.config(), "rank": rank}
        new = type(pair)(**settings).train(pair.training)
        state = pair.state_dict()
        state["first.weight"] = state["first.weight"][:rank]
        state["second.weight"] = state["second.weight"][:, :rank]
        new.load_state_dict(state)
        parent, _, name = path.rpartition(".")
        setattr(out.get_submodule(parent), name, new)
    return out
