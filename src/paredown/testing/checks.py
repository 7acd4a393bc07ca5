"""The checks: each takes a technique, a way to build the workload and its sites, and raises on a
broken promise.
"""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from paredown.changes import load_changes, save_changes
from paredown.errors import NotApplicable, ParedownError
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.graph.liveness import liveness
from paredown.graph.tensors import walk
from paredown.recipe import seeded
from paredown.technique import Change, Lowers, Sites, Stage, Technique
from paredown.testing.networks import build
from paredown.workload import Workload


class Inapplicable(Exception):
    """The technique refuses the whole network; the reasons are in the message."""


class Case(NamedTuple):
    """What a check gets: the technique, and how to build its workload afresh."""

    technique: Technique
    fresh: Callable[[], Workload]


def case(technique: Technique, network: str | Callable[[], Workload]) -> Case:
    """A technique on one of the `NETWORKS`, or on a workload that a function of yours builds."""
    return Case(technique, network if callable(network) else lambda: build(network))


def refuses_with_a_reason(technique: Technique, fresh: Callable[[], Workload]) -> None:
    """Every refused site has a one-line reason; a network without any site raises
    ``ParedownError``.
    """
    found = technique.sites(fresh(), capture(fresh()))
    for site, why in found.refused.items():
        assert why.strip(), f"{site} is refused without a reason"
        assert "\n" not in why, f"{site} is refused in several lines: {why!r}"
        assert site not in found.ok, f"{site} is both ok and refused"
    for site in (*found.ok, *found.refused):
        assert ":" in site, f"{site!r} names no role: write path:role"
    bare = Workload(_Nothing(), (torch.ones(2, 3),), name="nothing")
    nowhere = technique.sites(bare, capture(bare))
    assert not nowhere.ok, f"{technique.name} acts on a network without weights: {nowhere.ok}"
    for sites in (nowhere, Sites((), found.refused)):
        refusal = ""
        try:
            technique.apply(bare, sites)
        except ParedownError as e:
            refusal = str(e)
        assert refusal, f"{technique.name} applied to no site without a word"
        assert "\n" not in refusal, f"refusal in several lines: {refusal}"


def leaves_the_workload_alone(technique: Technique, fresh: Callable[[], Workload]) -> None:
    """Tensors, structure and plain attributes of the input workload are as before."""
    workload = fresh()
    before = _fingerprint(workload.model)
    _apply(technique, workload)
    assert _fingerprint(workload.model) == before, f"{technique.name} changed the caller's model"


def is_deterministic(technique: Technique, fresh: Callable[[], Workload]) -> None:
    """The same seed gives the same tensors and the same decisions."""
    first, second = (_apply(technique, fresh()) for _ in range(2))
    a, b = _state(first.workload.model), _state(second.workload.model)
    assert a.keys() == b.keys(), "two runs made different structures"
    for name, value in a.items():
        assert torch.equal(value, b[name]), f"{name} differs between two runs of one seed"
    assert repr(first.decisions.values) == repr(second.decisions.values)


def survives_save_and_load(technique: Technique, fresh: Callable[[], Workload]) -> None:
    """Recorded edits rebuild the structure; with saved tensors outputs are identical, and so they
    are from recorded decisions alone.
    """
    from safetensors.torch import load_file, save_file

    from paredown.editing import replay

    workload = fresh()
    change = _apply(technique, workload)
    change.technique = technique.name
    want = change.workload.call()
    with tempfile.TemporaryDirectory() as tmp:
        save_changes(Path(tmp) / "changes", [change])
        state = {k: t.clone().contiguous() for k, t in _state(change.workload.model).items()}
        save_file(state, Path(tmp) / "model.safetensors")
        (record,) = load_changes(Path(tmp) / "changes")
        loaded = load_file(Path(tmp) / "model.safetensors")
    again = fresh()
    model = replay(again.model, record.edits)
    _load(model, loaded)
    again.model = model
    _same(want, again.call(), "replaying the recorded edits")
    sites = technique.sites(workload, capture(workload))
    redone = technique.rewrite(fresh(), sites, record.decisions)
    _same(want, redone.workload.call(), "rewriting from the recorded decisions")


def previews_what_it_does(technique: Technique, fresh: Callable[[], Workload]) -> None:
    """The preview's graph is the one captured after `apply`: operators, shapes and dtypes."""
    workload = fresh()
    graph = capture(workload)
    sites = _sites(technique, workload, graph)
    preview = technique.preview(graph, sites).graph
    with seeded(0, technique.name):
        after = capture(technique.apply(workload, sites).workload)
    a, b = _operators(preview), _operators(after)
    for i, (x, y) in enumerate(zip(a, b, strict=False)):
        assert x == y, f"operator {i}: preview has {x}, the rewritten model {y}"
    assert len(a) == len(b), f"preview has {len(a)} operators, the rewritten model {len(b)}"
    assert preview.params == after.params, f"parameters: {preview.params} against {after.params}"


def keeps_its_claims(technique: Technique, fresh: Callable[[], Workload]) -> None:
    """Bytes and multiply-accumulates that a change claims to lower are lower, before any timing."""
    workload = fresh()
    change = _apply(technique, workload)
    assert change.touched, "the change names no site"
    before, after = capture(workload), capture(change.workload)
    if Lowers.BYTES in change.lowers:
        old, new = _weight_bytes(workload.model), _weight_bytes(change.workload.model)
        assert new < old, f"claims fewer bytes: {old} -> {new}"
    if Lowers.SIZE in change.lowers:
        old, new = _file_bytes(workload.model), _file_bytes(change.workload.model)
        assert new < old, f"claims a smaller file: {old} -> {new} bytes"
    if Lowers.SHAPES in change.lowers:
        assert after.macs < before.macs, (
            f"claims smaller shapes: {before.macs} -> {after.macs} MACs"
        )
    if Lowers.MEMORY in change.lowers:
        old, new = liveness(before).high_water, liveness(after).high_water
        assert new < old, f"claims less memory: {old} -> {new} bytes at once"


def composes(technique: Technique, fresh: Callable[[], Workload]) -> None:
    """With a rewrite before it and one after it in stage order: finite outputs, or a stated
    reason.
    """
    from paredown import registry

    _sites(technique, fresh(), capture(fresh()))
    pruning, packing = registry.make("structured-pruning"), registry.make("weight-only")
    pairs: list[tuple[Technique, Technique]] = []
    if technique.stage > Stage.STRUCTURE:
        pairs.append((pruning, technique))
    if technique.stage < Stage.NUMERIC:
        pairs.append((technique, packing))
    outcomes = [pair(first, second, fresh) for first, second in pairs]
    for (first, second), outcome in zip(pairs, outcomes, strict=True):
        names = f"{first.name}, then {second.name}"
        assert outcome is None or "\n" not in outcome, (
            f"{names}: refusal in several lines: {outcome}"
        )
    assert not pairs or None in outcomes, f"composes with neither neighbour: {outcomes}"


def pair(first: Technique, second: Technique, fresh: Callable[[], Workload]) -> str | None:
    """Apply two techniques in this very order and check the outputs; the reason if one refuses.

    A conflict of `ordering` counts as a reason only where no site is left beside it.
    """
    from paredown import ordering

    workload = fresh()
    want = workload.call()
    try:
        change = _apply(first, workload)
        middle = change.workload
        found = _sites(second, middle, capture(middle))
        why = ordering.clash([(first, change)], second, found.ok)
        if why is not None:
            return f"conflict: {why}"
        with seeded(0, second.name):
            last = second.apply(middle, found)
    except (NotApplicable, Inapplicable) as e:
        return str(e)
    sound(last.workload.call(), want)
    return None


CHECKS: dict[str, Callable[[Technique, Callable[[], Workload]], None]] = {
    f.__name__: f
    for f in (
        refuses_with_a_reason,
        leaves_the_workload_alone,
        is_deterministic,
        survives_save_and_load,
        previews_what_it_does,
        keeps_its_claims,
        composes,
    )
}
"""Every check by name, for parametrisation."""


def sound(out: Any, want: Any) -> None:
    """Outputs have the original's shapes, are finite, and differ between inputs."""
    pairs = list(zip(walk(out), walk(want), strict=True))
    assert pairs, "the network returns no tensor"
    for (name, a), (_, b) in pairs:
        assert a.shape == b.shape, f"output {name or 0}: {tuple(a.shape)}, not {tuple(b.shape)}"
        if a.is_floating_point():
            assert torch.isfinite(a).all(), f"output {name or 0} is not finite"
            assert float(a.float().std()) > 0, f"output {name or 0} is constant"


class _Nothing(nn.Module):
    """No weight, no layer: nothing to act on."""

    def forward(self, x: Tensor) -> Tensor:
        """Twice the input."""
        return x * 2


def _sites(technique: Technique, workload: Workload, graph: Graph) -> Sites:
    sites = technique.sites(workload, graph)
    if not sites.ok:
        raise Inapplicable(f"{technique.name} on {workload.name}: {_reasons(sites)}")
    return sites


def _apply(technique: Technique, workload: Workload) -> Change:
    sites = _sites(technique, workload, capture(workload))
    with seeded(0, technique.name):
        return technique.apply(workload, sites)


def _reasons(sites: Sites) -> str:
    return "; ".join(f"{s}: {why}" for s, why in list(sites.refused.items())[:3]) or "no site"


def _state(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor that travels with an artefact: tied ones once, unsaved buffers left out."""
    unsaved = {
        f"{path}.{name}" if path else name
        for path, m in model.named_modules()
        for name in m._non_persistent_buffers_set  # pyright: ignore[reportPrivateUsage]
    }
    buffers = {k: b.detach() for k, b in model.named_buffers() if k not in unsaved}
    return {**{k: p.detach() for k, p in model.named_parameters()}, **buffers}


def _load(model: nn.Module, state: dict[str, Tensor]) -> None:
    mine = _state(model)
    assert mine.keys() == state.keys(), f"replay lost {mine.keys() ^ state.keys()}"
    with torch.no_grad():
        for name, value in state.items():
            mine[name].copy_(value)


def _fingerprint(model: nn.Module) -> str:
    h = hashlib.sha256(repr(model).encode())
    for path, m in model.named_modules():
        plain = {k: v for k, v in vars(m).items() if isinstance(v, (int, float, str, tuple))}
        hooks = (len(m._forward_hooks), len(m._forward_pre_hooks))  # pyright: ignore
        h.update(repr((path, sorted(plain.items(), key=str), hooks)).encode())
    for name, t in (*model.named_parameters(), *model.named_buffers()):
        data = t.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
        h.update(repr((name, t.shape, t.dtype, t.requires_grad, t.grad is None)).encode() + data)
    return h.hexdigest()


def _operators(graph: Graph) -> list[tuple[Any, ...]]:
    return [
        (n.op, tuple((graph.tensors[t].shape, graph.tensors[t].dtype) for t in n.outputs))
        for n in graph.nodes
    ]


def _weight_bytes(model: nn.Module) -> int:
    return sum(t.numel() * t.element_size() for t in _state(model).values())


def _file_bytes(model: nn.Module) -> int:
    from paredown.runtime import sparse_file

    return sparse_file.nbytes(_state(model))


def _same(want: Any, got: Any, what: str) -> None:
    for (name, a), (_, b) in zip(walk(want), walk(got), strict=True):
        assert torch.equal(a, b), f"{what} changed output {name or 0}"
