"""What the policies act on: a network as a row of units to remove, or of groups to shrink.

Ashok et al. 2018 (N2N learning), arXiv:1709.06030, sections 3.1 and 3.2. Removal puts an identity
in place of a module whose output has its input's shape; shrinkage cuts dependency groups by
structured pruning, so that whatever a network's code is, what comes out runs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from paredown.editing import Editor
from paredown.errors import NotApplicable
from paredown.graph.capture import capture
from paredown.search.n2n.policies import FEATURES
from paredown.technique import Sites
from paredown.techniques.distance import blocks
from paredown.techniques.sparsify.structured import StructuredPruning
from paredown.workload import Workload

SHARES = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5, 0.25)
"""What a layer may keep of its output channels (the authors' code: 0.5 stands there five times)."""
FLOOR = 4
"""Channels that stay at least."""
WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class RemovalStage:
    """Units of one input and output shape: residual blocks, and convolutions outside of them."""

    options = 2

    def __init__(self, workload: Workload) -> None:
        self.workload = workload
        self.paths = _same_shape(workload)
        if not self.paths:
            raise NotApplicable(
                f"n2n: {workload.name} has no unit whose output is shaped as its input"
            )
        whole = set(blocks(workload.model))
        modules = [workload.model.get_submodule(p) for p in self.paths]
        self.features = torch.stack(
            [features(m, p in whole) for m, p in zip(modules, self.paths, strict=True)]
        )

    def student(self, actions: Sequence[int]) -> Workload:
        """The network without the units whose action is 0."""
        editor = Editor(self.workload)
        for path, keep in zip(self.paths, actions, strict=True):
            if not keep:
                editor.swap(path, nn.Identity())
        return editor.workload


class ShrinkageStage:
    """Groups of channels, heads and features that can be cut, each to one of `SHARES`."""

    options = len(SHARES)

    def __init__(self, workload: Workload, *, streams: bool = True) -> None:
        self.workload = workload
        self.technique = StructuredPruning(share=0.5, round_to=1, streams=streams)
        self.sites = self.technique.sites(workload, capture(workload))
        if not self.sites.ok:
            raise NotApplicable(f"n2n: {workload.name} has no group of channels to cut")
        modules = [workload.model.get_submodule(s.partition(":")[0]) for s in self.sites.ok]
        self.features = torch.stack([features(m, False) for m in modules])

    def student(self, actions: Sequence[int]) -> Workload:
        """The network with every group cut to its share, the most important units kept."""
        cut: dict[str, dict[str, Any]] = {}
        for site, action in zip(self.sites.ok, actions, strict=True):
            size = _width(self.workload.model.get_submodule(site.partition(":")[0]))
            keep = max(min(FLOOR, size), round(size * SHARES[action]))
            if keep < size:
                cut[site] = {"share": 1 - keep / size}
        if not cut:
            return self.workload.copy()
        sites = Sites(tuple(cut), {}, cut)
        return self.technique.apply(self.workload, sites).workload


def features(module: nn.Module, block: bool) -> Tensor:
    """What a policy reads of one unit, ``(FEATURES,)``, each of order 1.

    A block stands for its first layer with a weight.
    """
    layer: Any = next((m for m in module.modules() if isinstance(m, WEIGHTED)), module)
    size, stride, padding = (
        _first(getattr(layer, n, 0)) for n in ("kernel_size", "stride", "padding")
    )
    kind = 0.0 if isinstance(layer, nn.Linear) else 1.0
    out = torch.tensor([kind, size / 3, stride / 2, padding, _width(layer) / 64, float(block)])
    assert len(out) == FEATURES
    return out


def _first(value: Any) -> float:
    value = value[0] if isinstance(value, tuple) else value
    return float(value) if isinstance(value, (int, float)) else 0.0


def _width(module: Any) -> int:
    for name in ("out_channels", "out_features"):
        if hasattr(module, name):
            return int(getattr(module, name))
    weight = next(iter(module.parameters()), None)
    return 1 if weight is None else len(weight)


def _same_shape(workload: Workload) -> list[str]:
    """Removable units in the order in which they run, none inside another."""
    wanted = [*blocks(workload.model)]
    wanted += [p for p, m in workload.model.named_modules() if isinstance(m, WEIGHTED) and p]
    ran: list[str] = []

    def note(path: str) -> Any:
        def hook(_: nn.Module, args: tuple[Any, ...], out: Any) -> None:
            if (
                len(args) == 1
                and isinstance(args[0], Tensor)
                and isinstance(out, Tensor)
                and args[0].shape == out.shape
            ):
                ran.append(path)

        return hook

    model = workload.copy().model.eval()
    for path in dict.fromkeys(wanted):
        model.get_submodule(path).register_forward_hook(note(path))
    with torch.no_grad():
        model(*workload.inputs, **workload.kwargs)
    # Parts of a block that stays whole are not units: its shortcut would add to nothing.
    inside = [b for b in blocks(workload.model) if b]
    return [p for p in dict.fromkeys(ran) if not any(p.startswith(f"{b}.") for b in inside)]
