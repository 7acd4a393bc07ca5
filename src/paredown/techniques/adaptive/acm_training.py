"""Training adaptive computation modules in three phases (Wojcik et al. 2023, section 3)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown.graph.varying import forget
from paredown.runtime.adaptive_mlp import ACTIVATIONS, AdaptiveMlp
from paredown.techniques.companion import Companion
from paredown.workload import TrainingData

RATIO = 1.2
"""A learner more is not worth it where the error falls by less than this factor."""
ENTROPY, DIVERSITY = 0.05, 0.05
"""Weights of two of the three terms beside the task's loss (released script)."""


def slices(mlp: tuple[nn.Linear, nn.Linear], new: AdaptiveMlp, inputs: Tensor) -> None:
    """Hand a trained layer's hidden units out to the learners, those that matter most first.

    A unit matters by the size of what it adds to the output of ``inputs`` ``(rows, inputs)``. With
    all learners the form is then the layer itself.
    """
    one, two = mlp
    biases: list[Any] = [one.bias, two.bias]  # torch's types know no layer without
    with torch.no_grad():
        inside = ACTIVATIONS[new.act](one(inputs))
        worth = inside.square().mean(0).sqrt() * two.weight.norm(dim=0)
        order = worth.argsort(descending=True)
        wide = new.learners * new.hidden
        new.up.weight.zero_()
        bias = torch.zeros(wide, dtype=one.weight.dtype)
        down = torch.zeros(wide, new.outputs, dtype=one.weight.dtype)
        new.up.weight[: len(order)] = one.weight[order]
        if biases[0] is not None:
            bias[: len(order)] = biases[0][order]
        down[: len(order)] = two.weight.t()[order]
        new.up.bias.copy_(bias)
        new.down.copy_(down)
        new.bias.copy_(torch.zeros(new.outputs) if biases[1] is None else biases[1])


class Seen:
    """Inputs and outputs of modules while a model runs."""

    def __init__(self, model: nn.Module, paths: list[str]) -> None:
        self.pairs: dict[str, tuple[Tensor, Tensor]] = {}
        self._hooks = [
            model.get_submodule(path).register_forward_hook(self._noted(path)) for path in paths
        ]

    def _noted(self, path: str) -> Any:
        def note(_: nn.Module, args: tuple[Any, ...], out: Tensor) -> None:
            self.pairs[path] = (args[0].detach(), out.detach())

        return note

    def close(self) -> None:
        """Stop looking."""
        for hook in self._hooks:
            hook.remove()


def batches(data: TrainingData, steps: int, seed: int) -> Iterator[tuple[Any, ...]]:
    """The inputs of so many batches, epoch after epoch."""
    torch.manual_seed(seed)
    every = (inputs for _ in itertools.count() for inputs, _ in data.batches())
    return itertools.islice(every, steps)


def learn_layers(
    model: nn.Module, new: dict[str, AdaptiveMlp], data: TrainingData, steps: int, seed: int
) -> None:
    """Phase 1: every prefix of the learners towards the trained layer's output, layer by layer."""
    weights = [p for m in new.values() for p in (*m.up.parameters(), m.down, m.bias)]
    _phase(model, new, data, steps, seed, torch.optim.Adam(weights, 1e-3), _prefix_loss)


def learn_gates(
    model: nn.Module, new: dict[str, AdaptiveMlp], data: TrainingData, steps: int, seed: int
) -> None:
    """Phase 2: the gates towards the fewest learners after which one more adds little."""
    weights = [p for m in new.values() for p in m.gate.parameters()]
    _phase(model, new, data, steps, seed, torch.optim.Adam(weights, 1e-2), _gate_loss)


def _phase(
    model: nn.Module,
    new: dict[str, AdaptiveMlp],
    data: TrainingData,
    steps: int,
    seed: int,
    optimizer: torch.optim.Optimizer,
    loss: Any,
) -> None:
    seen = Seen(model, list(new))
    try:
        for inputs in batches(data, steps, seed):
            forget(model)
            with torch.no_grad():
                model(*inputs)
            total: Any = sum(loss(new[path], x, y) for path, (x, y) in seen.pairs.items())
            optimizer.zero_grad(set_to_none=True)
            total.backward()
            optimizer.step()
    finally:
        seen.close()


def _prefix_loss(module: AdaptiveMlp, x: Tensor, y: Tensor) -> Tensor:
    size = y.square().mean().clamp(min=1e-12)
    return torch.stack([F.mse_loss(p, y) for p in module.prefixes(x)]).sum() / size


def wanted(module: AdaptiveMlp, x: Tensor, y: Tensor) -> Tensor:
    """The label of each token's gate: k + 1 for the first k >= 1 with err_k / err_(k+1) below 1.2,
    all learners where there is none.
    """
    with torch.no_grad():
        errors = torch.stack([(p - y).norm(dim=-1) for p in module.prefixes(x)], -1)
        little = errors[..., :-1] < RATIO * errors[..., 1:]
        little[..., 0] = False
        first = little.int().argmax(-1)
        return torch.where(little.any(-1), first + 1, module.learners)


def _gate_loss(module: AdaptiveMlp, x: Tensor, y: Tensor) -> Tensor:
    logits = module.gate(x)
    return F.cross_entropy(logits.flatten(0, -2), wanted(module, x, y).flatten())


class Load(Companion):
    """Phase 3's terms: the mean load at ``target``, gates that use every choice, and images that
    differ in their load.
    """

    def __init__(self, layers: list[AdaptiveMlp], target: float, weight: float) -> None:
        super().__init__()
        # A plain list registers nothing: the layers are the student's own, not this module's.
        self.layers = layers
        self.target, self.weight = target, weight
        for layer in layers:
            layer.watched = True

    def loss(self, student: nn.Module, inputs: tuple[Any, ...], target: Any, out: Any) -> Tensor:
        """The three terms of the last run of the student, weighed."""
        loads: list[Tensor] = []
        even: list[Tensor] = []
        for module in self.layers:
            if module.choices is None:
                continue
            choices = module.choices.flatten(1, -2)  # (images, tokens, learners + 1)
            counts = torch.arange(module.learners + 1, dtype=choices.dtype)
            loads.append((choices @ counts).mean(1) / module.learners)
            used = choices.mean(1).clamp(min=1e-9)
            even.append((used * used.log()).sum(-1).mean() / torch.tensor(used.shape[-1]).log())
        each = torch.stack(loads).mean(0)
        spread = (each[:, None] - each[None, :]).abs().mean()
        cost = (each.mean() - self.target).abs()
        return self.weight * cost + ENTROPY * torch.stack(even).mean() - 2 * DIVERSITY * spread
