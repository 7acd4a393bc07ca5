"""Block pruning of linear layers by estimated damage and modelled power (LPViT, Xu et al. 2024,
arXiv:2407.02068), after training, without labels.

Blocks of a layer go in the order of their mean ``|w g|``, g being the gradient of the mean squared
output on a calibration item. `block_damage` estimates what k lost blocks do to the output and
chooses k per layer: damage plus weighted power is least while a share of the multiply-accumulates
goes. Power of a layer: ``macs + fetch * weights``, times its share of blocks kept.

Cost law: a share s of these layers' work is zero blocks. Sparse kernels skip them: the native
engine's where its laws say that it pays (`runtime.native.sparse`; blocks of 16 x 32 in bfloat16 and
16 x 64 in int8 on AMX from about half on, in wide layers). On disk as in `one_shot`. Elsewhere only
the file is smaller, which alone is claimed.

Deviations: `gradient="mean"` averages g over the items first, as the paper does; "each", the
default, averages the products over items, so that gradients of opposite signs do not cancel (with
one item both are the same; the claim card has both). Curves have a point per block instead of 101
and never fall; the best counts at a slope are found exactly instead of matching slopes, and the
last layer is cut where the share is met; with equal rows of activations in all layers the power
term shifts every slope alike and changes nothing. `damage="layer"` (the paper's alternative) ranks
by ``|w|^2 ||x||^2`` and weighs errors of a layer's outputs relative to their size, without
gradients. Linears, ``Conv1D`` and 1 x 1 convolutions of one group; the layer that makes the model's
output stays dense.
Fine-tuning, the paper's second stage, is `recover`, which keeps the zeros.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.technique import (
    Change,
    Choice,
    Decisions,
    Lowers,
    Needs,
    Rewrite,
    Sites,
    Stage,
    Touches,
)
from paredown.techniques.factorize.covariance import covariances
from paredown.techniques.gradients import untrainable
from paredown.techniques.quantize.common import Usage, is_conv1d, matrix, paths, weighted_sites
from paredown.techniques.sparsify import block_damage, pruners
from paredown.techniques.sparsify.importance import BATCHES, first_tensor
from paredown.workload import Workload

Ranked = tuple[Tensor, block_damage.Curve]
"""Blocks in the order in which they go, and the damage of losing the first k."""

FEWEST = 4
"""Blocks that a layer must have to choose among."""


@dataclass(frozen=True)
class BlockPruning(Rewrite):
    """Zero blocks of linear layers, as many in each as damage and power say (LPViT, Xu et al.
    2024).
    """

    name: ClassVar[str] = "block-pruning"
    paper: ClassVar[str | None] = "lpvit"
    family: ClassVar[str] = "sparsify"
    stage: ClassVar[Stage] = Stage.SPARSITY
    needs: ClassVar[frozenset[Needs]] = frozenset({Needs.CALIBRATION})
    touches: ClassVar[frozenset[Touches]] = frozenset({Touches.WEIGHT_VALUES})
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.SIZE})

    share: Annotated[
        float, Choice(0.3, 0.5, 0.6, 0.7, 0.8), "share of all sites' multiply-accumulates cut"
    ] = 0.5
    block: Annotated[
        str,
        Choice("8x8", "16x16", "16x32", "16x64", "32x32", "32x64", "64x32"),
        "outputs x inputs that stay or go as one",
    ] = "16x32"
    damage: Annotated[str, Choice("output", "layer"), "what is kept: output, or each layer's"] = (
        "output"
    )
    gradient: Annotated[
        str, Choice("each", "mean"), "Fisher matrix of each item's gradient, or of their mean"
    ] = "each"
    power: Annotated[float, "weight of power against damage, times the authors' balance"] = 1.0
    fetch: Annotated[float, "energy of reading a weight, in multiply-accumulates"] = 200.0

    @classmethod
    def variants(cls) -> dict[str, dict[str, Any]]:
        """Shares alone, in the blocks that the native engine skips in bfloat16."""
        return {f"{s:g}": {"share": s} for s in (0.3, 0.5, 0.7)}

    def __post_init__(self) -> None:
        """Validate the knobs; raises ``InputError``."""
        if not 0 < self.share < 1:
            raise InputError(f"share must lie in (0, 1), got {self.share}")
        if self.damage not in ("output", "layer"):
            raise InputError(f"damage {self.damage!r}: output or layer")
        if self.gradient not in ("each", "mean"):
            raise InputError(f"gradient {self.gradient!r}: each or mean")
        if self.power < 0 or self.fetch < 0:
            raise InputError("power and fetch must be at least 0")
        self._blocks()

    def _blocks(self) -> pruners.Blocks:
        try:
            pattern = pruners.kept_of(self.block)
        except ValueError:
            pattern = None
        if not isinstance(pattern, pruners.Blocks):
            raise InputError(f"block {self.block!r}: outputs x inputs, 16x32 for example")
        return pattern

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Linears, ``Conv1D`` and 1 x 1 convolutions, ``path:weight``, but for the last layer."""
        if self.damage == "output" and (why := untrainable(workload, graph)) is not None:
            return Sites((), {":weights": why})
        usage = Usage(workload, graph)
        last = _last(graph)
        held = {id(workload.model.get_submodule(p)) for p in last}

        def judge(kind: str, module: Any) -> str | None:
            return self._refuse(kind, module, id(module) in held) or usage.why_not(module)

        return weighted_sites(workload, judge)

    def _refuse(self, kind: str, module: Any, last: bool) -> str | None:
        if kind == "conv":
            plain = isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)
            if not plain or module.groups > 1:
                return "only linear layers and 1 x 1 convolutions of one group lose blocks"
        elif kind != "linear":
            return "only linear layers and 1 x 1 convolutions lose blocks"
        if last:
            return "it makes the model's output: kept dense"
        blocks = self._blocks()
        rows, columns = matrix(module).flatten(1).shape
        count = -(-rows // blocks.rows) * -(-columns // blocks.columns)
        if count < FEWEST:
            return f"{rows} x {columns} is {count} blocks of {self.block}: too few to choose among"
        return None

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Which blocks of every site stay, with what was estimated of each layer."""
        found = [p for _, p in paths(workload, sites.ok)]
        work = _work(capture(workload), found)
        curves = self._by_output if self.damage == "output" else self._by_layer
        layers: list[block_damage.Layer] = []
        orders: list[Tensor] = []
        for path, (order, curve) in curves(workload, found).items():
            if not np.isfinite(curve).all():
                raise NotApplicable(f"{self.name}: {path} sees no finite numbers in calibration")
            weight = _flat(workload, path)
            gone = block_damage.shares(weight, self._blocks(), order)
            power = work[path] + self.fetch * weight.numel()
            layers.append(block_damage.Layer(block_damage.smoothed(curve), gone, work[path], power))
            orders.append(order)
        lost = block_damage.counts(layers, self.share, self.power * block_damage.balance(layers))
        each = list(zip(found, layers, lost, strict=True))
        values = {
            "zeros": {p: round(float(x.gone[n]), 6) for p, x, n in each},
            "damage": {p: float(x.damage[n]) for p, x, n in each},
            "macs": _kept([x.macs for x in layers], layers, lost),
            "power": _kept([x.power for x in layers], layers, lost),
        }
        masks: dict[str, Tensor] = {}
        for path, order, count in zip(found, orders, lost, strict=True):
            mask = self._grid(workload, path)
            mask.view(-1)[order[:count]] = False
            masks[path] = mask
        return Decisions(values, masks)

    def _by_layer(self, workload: Workload, found: list[str]) -> dict[str, Ranked]:
        blocks = self._blocks()
        moments = covariances(workload, found)
        curves: dict[str, Ranked] = {}
        for path in found:
            weight, moment = _flat(workload, path), moments[path]
            order = block_damage.ascending(blocks.means(weight.square() * moment.diagonal()))
            curves[path] = order, block_damage.layer_curve(weight, moment, blocks, order)
        return curves

    def _by_output(self, workload: Workload, found: list[str]) -> dict[str, Ranked]:
        blocks = self._blocks()
        weights = {p: _flat(workload, p) for p in found}
        sizes = {p: blocks.sums(torch.ones_like(w)).flatten() for p, w in weights.items()}
        items: dict[str, list[block_damage.Products]] = {p: [] for p in found}
        for gradients in _gradients(workload, found, self.gradient):
            for path, g in gradients.items():
                items[path].append(block_damage.Products.of(weights[path], g, blocks))
        curves: dict[str, Ranked] = {}
        for path, weight in weights.items():
            products = block_damage.Products.joined(items[path])
            order = block_damage.ascending(products.absolute / sizes[path])
            curves[path] = order, block_damage.output_curve(weight, products, blocks, order)
        return curves

    def _grid(self, workload: Workload, path: str) -> Tensor:
        """A mask ``(down, across)`` in which all blocks of a layer stay."""
        rows, columns = matrix(workload.model.get_submodule(path)).flatten(1).shape
        blocks = self._blocks()
        return torch.ones(-(-rows // blocks.rows), -(-columns // blocks.columns), dtype=torch.bool)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """Weights of the same shapes; which blocks go is not known."""
        masks = {p: self._grid(workload, p) for _, p in paths(workload, sites.ok)}
        return Decisions({"zeros": {}, "damage": {}}, masks)

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """Zero the blocks and mark the weights, so that later training keeps their zeros."""
        editor = Editor(workload)
        blocks = self._blocks()
        for path, mask in decisions.tensors.items():
            module: Any = workload.model.get_submodule(path)
            weight = matrix(module)
            stays = blocks.spread(mask, *weight.flatten(1).shape).view(weight.shape)
            pruned = torch.where(stays, weight, 0.0)
            pruned = pruned.t() if is_conv1d(module) else pruned
            editor.tensor(path, "weight", pruned.contiguous())
            editor.attach(path, "keep_zeros")
        notes: list[str] = []
        if decisions.values["zeros"]:
            zeros = decisions.values["zeros"].values()
            v = decisions.values
            notes.append(f"{min(zeros):.1%} to {max(zeros):.1%} of weights zero, by layer")
            notes.append(f"of these layers {v['macs']:.1%} of MACs, {v['power']:.1%} of power kept")
            notes.append("faster on the native engine alone, where blocks fill its tiles")
        return editor.change(self, sites.ok, decisions, notes=notes)


def _gradients(workload: Workload, found: list[str], kind: str) -> Iterator[dict[str, Tensor]]:
    """Gradients of the mean squared output by each weight matrix: per item, or their mean."""
    work = workload.own()
    model = work.model.eval().requires_grad_(False)
    layers = {p: model.get_submodule(p) for p in found}
    weights = [m.get_parameter("weight").requires_grad_(True) for m in layers.values()]
    calls = list(islice(workload.calibration_inputs(), BATCHES))
    total: dict[str, Tensor] = {}
    for call in calls:
        with torch.enable_grad():
            loss = first_tensor(work.judged(call)).float().square().mean()
        if not loss.requires_grad:
            raise NotApplicable("block-pruning: the output has no gradient by the weights")
        got = torch.autograd.grad(loss, weights, materialize_grads=True)
        each = {
            p: (g.t() if is_conv1d(m) else g.flatten(1)).float()
            for (p, m), g in zip(layers.items(), got, strict=True)
        }
        if kind == "each":
            yield each
        else:
            total = {p: total.get(p, torch.zeros(())) + g / len(calls) for p, g in each.items()}
    if kind == "mean":
        yield total


def _flat(workload: Workload, path: str) -> Tensor:
    """A layer's weights as a float matrix ``(outputs, inputs)``."""
    return matrix(workload.model.get_submodule(path)).flatten(1).float()


def _last(graph: Graph) -> set[str]:
    """Modules whose products make the outputs of a run, but for views and functions of one tensor
    (a softmax, a scale).
    """
    makers = graph.producers()
    found: set[str] = set()
    waiting = list(graph.outputs)
    while waiting:
        node = makers.get(waiting.pop())
        if node is None:
            continue
        if node.macs and node.module:
            found.add(node.module)
        elif node.view or len(node.inputs) == 1:
            waiting += node.inputs[:1]
    return found


def _work(graph: Graph, found: list[str]) -> dict[str, float]:
    """Multiply-accumulates of each layer in one run."""
    totals = dict.fromkeys(found, 0.0)
    for node in graph.nodes:
        if node.module in totals:
            totals[node.module] += node.macs or 0
    idle = next((p for p, n in totals.items() if not n), None)
    if idle is not None:
        raise NotApplicable(f"block-pruning: {idle} multiplies nothing in a run")
    return totals


def _kept(costs: list[float], layers: list[block_damage.Layer], gone: list[int]) -> float:
    """Share of a cost that stays."""
    stays = (c * (1 - float(x.gone[n])) for c, x, n in zip(costs, layers, gone, strict=True))
    return round(sum(stays) / sum(costs), 6)
