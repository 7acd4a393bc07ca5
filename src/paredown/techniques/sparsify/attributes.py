"""Plain attributes that hold a size (``out_channels``, ``num_heads``): which must change after a
cut.

Layers of known make are exact. Anywhere else an attribute that equals a size its module meets in
the run is a candidate; the pruned fake model is captured again and every tensor's shape must come
out as the dependency groups predict. Nothing that fails this is cut.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from typing import Any

import torch
from torch import nn

from paredown.editing import Editor
from paredown.errors import CaptureError, NotApplicable
from paredown.graph.axis_rules import POINTWISE
from paredown.graph.capture import capture, fake
from paredown.graph.dependency import CONV, CONV_TRANSPOSE, Cut, Dependencies
from paredown.graph.graph import Graph, Node
from paredown.workload import Workload

MOST_TRIES = 10
"""Ambiguous attributes are tried in combinations, each a capture of the fake model."""


NO_SIZE = frozenset(
    [
        "idx",
        "index",
        "layer",
        "depth",
        "stage",
        "level",
        "stride",
        "kernel",
        "padding",
        "dilation",
        "window",
        "patch",
        "offset",
    ]
)
"""Words in the names of attributes that count or place something and are no width of an axis."""


@dataclass(frozen=True)
class Attr:
    """A plain attribute of the module at ``path`` and its new value."""

    path: str
    name: str
    value: Any


def cut_tensors(editor: Editor, cuts: list[Cut]) -> None:
    """Reduce parameters and buffers; a tensor known by several names stays one."""
    by_name: dict[str, list[Cut]] = defaultdict(list)
    for c in cuts:
        by_name[c.name].append(c)
    for name, todo in by_name.items():
        path, _, own = name.rpartition(".")
        new: torch.Tensor = getattr(editor.model.get_submodule(path), own).detach()
        for c in todo:
            keep = torch.tensor(c.keep, dtype=torch.long, device=new.device)
            new = new.index_select(c.dim, keep)
        editor.tensor(path, own, new, tied=True)


def settle(deps: Dependencies, kept: dict[str, list[int]], *, check: bool = True) -> list[Attr]:
    """The attributes to set for these cuts, verified; raises ``NotApplicable`` when nothing runs.

    Without ``check`` the choice of the last verified cut of this graph is taken as it is.
    """
    source: Workload = deps.graph.source
    cuts = deps.cuts(kept)
    exact = list(_exact(source.model, cuts))
    sure, unsure = _candidates(source.model, deps, kept, {(a.path, a.name) for a in exact})
    kind = {a: (type(source.model.get_submodule(a.path)).__name__, a.name) for a in unsure}
    kinds = sorted(set(kind.values()))

    def chosen(flips: frozenset[tuple[str, str]]) -> list[Attr]:
        return exact + sure + [a for a in unsure if kind[a] in flips]

    if not check and deps.flips is not None:
        return chosen(deps.flips)
    why: Exception | None = None
    tries = [deps.flips] if deps.flips is not None else []
    for flips in (*tries, *islice(_subsets(kinds), MOST_TRIES)):
        try:
            verify(deps, kept, cuts, chosen(flips))
        except (CaptureError, NotApplicable) as e:
            why = why or e
            continue
        deps.flips = flips
        return chosen(flips)
    raise NotApplicable(f"the cut model does not run: {why}")


def verify(
    deps: Dependencies, kept: dict[str, list[int]], cuts: list[Cut], attrs: list[Attr]
) -> Graph:
    """Capture the cut fake model; every tensor must have the predicted shape, every operator the
    same constants (an attribute wrongly changed may scale attention without changing a shape).
    """
    source: Workload = deps.graph.source
    with fake(source):
        editor = Editor(source)
        cut_tensors(editor, cuts)
        for a in attrs:
            editor.attr(a.path, a.name, a.value)
    after = capture(editor.workload, already_fake=True)
    expected = deps.shapes_after(kept)
    before, now = deps.graph.nodes, after.nodes
    if [n.op for n in before] != [n.op for n in now]:
        # With one head left a model may skip moving data: what computes must still be the same.
        before, now = ([n for n in nodes if not _moves(n)] for nodes in (before, now))
    if len(before) != len(now):
        raise NotApplicable("the cut model runs other operators than the original")
    for old, new in zip(before, now, strict=True):
        where = f"{old.op} at {old.line}"
        if old.op != new.op:
            raise NotApplicable(f"{where} became {new.op}")
        if _constants(old) != _constants(new):
            raise NotApplicable(f"{where} computes with other constants after the cut")
        for t_old, t_new in zip(old.outputs, new.outputs, strict=True):
            want, got = expected[t_old], after.tensors[t_new].shape
            if want != got:
                raise NotApplicable(f"{where} gives {list(got)}, not {list(want)} as predicted")
    return after


def _exact(model: nn.Module, cuts: list[Cut]) -> Iterator[Attr]:
    """Attributes of torch's own layers and of Hugging Face's Conv1D, from their tensors' new
    sizes.
    """
    sizes: dict[str, dict[tuple[str, int], int]] = defaultdict(dict)
    for c in cuts:
        path, _, own = c.name.rpartition(".")
        sizes[path][own, c.dim] = len(c.keep)
    for path, new in sizes.items():
        module = model.get_submodule(path)
        weight: Any = getattr(module, "weight", None)
        if not isinstance(weight, torch.Tensor):
            continue
        shape = [new.get(("weight", d), int(n)) for d, n in enumerate(weight.shape)]
        for name, value in _layer_attrs(module, weight, shape):
            if name in vars(module) and getattr(module, name) != value:
                yield Attr(path, name, value)


def _layer_attrs(
    module: nn.Module, weight: torch.Tensor, shape: list[int]
) -> Iterator[tuple[str, Any]]:
    if isinstance(module, (*CONV, *CONV_TRANSPOSE)):
        flip = isinstance(module, CONV_TRANSPOSE)
        groups = module.groups
        if groups > 1 and weight.shape[1] == 1:  # depthwise: a group per channel
            groups = groups * shape[0] // weight.shape[0]
            yield "groups", groups
        a, b = shape[0], shape[1] * groups
        yield "in_channels", a if flip else b
        yield "out_channels", b if flip else a
    elif isinstance(module, nn.Linear):
        yield "out_features", shape[0]
        yield "in_features", shape[1]
    elif isinstance(module, (nn.Embedding, nn.EmbeddingBag)):
        yield "num_embeddings", shape[0]
        yield "embedding_dim", shape[1]
    elif type(module).__name__ == "Conv1D":
        yield "nx", shape[0]
        yield "nf", shape[1]
    elif hasattr(module, "normalized_shape"):
        yield "normalized_shape", tuple(shape)
    else:
        yield "num_features", shape[0]
        yield "num_channels", shape[0]


def _candidates(
    model: nn.Module,
    deps: Dependencies,
    kept: dict[str, list[int]],
    known: set[tuple[str, str]],
) -> tuple[list[Attr], list[Attr]]:
    """Attributes that equal a size which always changes in their module, and those where it may."""
    sure: list[Attr] = []
    unsure: list[Attr] = []
    exact_paths = {path for path, _ in known}
    for path, sizes in deps.sizes(kept).items():
        module = model.get_submodule(path)
        if path in exact_paths:
            continue
        for name, value in vars(module).items():
            if name.startswith("_") or isinstance(value, bool) or not isinstance(value, int):
                continue
            if NO_SIZE & set(name.split("_")):
                continue
            becomes = sizes.get(value, set())
            changed = sorted(becomes - {value})
            if changed:
                (sure if becomes == set(changed) and len(changed) == 1 else unsure).append(
                    Attr(path, name, changed[0])
                )
    return sure, unsure


def _subsets(kinds: list[tuple[str, str]]) -> Iterator[frozenset[tuple[str, str]]]:
    """All but the size of a head (it never changes), none, all, then all but one, but two ..."""
    likely = frozenset(k for k in kinds if "head_dim" not in k[1] and "head_size" not in k[1])
    yield likely
    for r in (0, *range(len(kinds), 0, -1)):
        for c in combinations(kinds, r):
            if frozenset(c) != likely:
                yield frozenset(c)


MOVES = frozenset(
    [
        "view",
        "reshape",
        "_unsafe_view",
        "expand",
        "clone",
        "contiguous",
        "unsqueeze",
        "squeeze",
        "alias",
        "permute",
        "transpose",
        "t",
        "slice",
        "select",
    ]
)


def _moves(node: Node) -> bool:
    """Whether a node only moves data or makes a view of it."""
    return node.op.rpartition("::")[2] in MOVES


def _constants(node: Node) -> tuple[Any, ...]:
    """The numbers an arithmetic or attention operator computes with."""
    name = node.op.rpartition("::")[2].rstrip("_")
    if name not in POINTWISE and "attention" not in name:
        return ()
    values = (*node.args, *node.kwargs.values())
    return tuple(v for v in values if isinstance(v, (int, float)))
