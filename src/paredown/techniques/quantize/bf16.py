"""bf16: the model computes in bfloat16, its boundary keeps the dtypes its callers know.

Halves weights and activations; matrix products run on bf16 units where the device has them. What
must keep more than 8 bits of mantissa stays float32: batch norms (kernels take bf16 inputs with
float32 statistics), inverse frequencies of rotary embeddings (angles grow with position), and every
site left out of the recipe, which then is cast at its own boundary. Sums inside matrix products,
softmax and norms are float32 in the kernels of torch and OpenVINO.

Cost law: half the bytes; time by the device's bf16 rate. Limits: a model whose own forward makes
float32 tensors that meet bf16 ones in a product is refused, found by a run without weights.
"""

# torch keeps its modules' tables and base classes private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from paredown.editing import Editor
from paredown.errors import CaptureError, NotApplicable
from paredown.graph.graph import Graph
from paredown.runtime.onnx_layers import OnnxLayer
from paredown.runtime.onnx_model import OnnxModule
from paredown.runtime.quantized import INTEGER
from paredown.technique import Change, Decisions, Lowers, Rewrite, Sites, Stage, Touches
from paredown.techniques.quantize.common import Usage, dtype_name, gather, paths
from paredown.workload import Workload

# Operators whose kernels take one float dtype only.
_PRODUCTS = {
    *("mm", "addmm", "bmm", "baddbmm", "matmul", "linear", "convolution", "addmv", "mv"),
    *("scaled_dot_product_attention", "_scaled_dot_product_flash_attention_for_cpu"),
}
_FLOATS = {"float16", "bfloat16", "float32", "float64"}
# Buffers whose relative precision of 2**-8 is not enough, by the last part of their name.
_FULL = ("inv_freq", "original_inv_freq")


@dataclass(frozen=True)
class BF16(Rewrite):
    """The whole model in bfloat16, sites left out in float32 behind casts."""

    name: ClassVar[str] = "bf16"
    paper: ClassVar[str | None] = None
    family: ClassVar[str] = "quantize"
    stage: ClassVar[Stage] = Stage.PRECISION
    touches: ClassVar[frozenset[Touches]] = frozenset(
        {Touches.WEIGHT_DTYPE, Touches.ACTIVATION_DTYPE}
    )
    lowers: ClassVar[frozenset[Lowers]] = frozenset({Lowers.BYTES, Lowers.TIME})
    maturity: ClassVar[Any] = "stable"
    onnx: ClassVar[bool] = True

    def sites(self, workload: Workload, graph: Graph) -> Sites:
        """Modules that own float32 parameters, ``path:dtype``; refused when a dry run fails.

        Modules that can only change together (tied, or read from outside) are one site.
        """
        if isinstance(workload.model, OnnxModule):
            return _onnx_sites(workload)
        plan = _Plan(workload, graph)
        found = gather(workload, "dtype", plan.judge)
        if not found.ok or graph.source is None:
            return found
        try:
            why = _mixed(self.preview(graph, found).graph)
        except CaptureError as e:
            why = str(e)
        if why:
            return Sites((), {**found.refused, **dict.fromkeys(found.ok, f"in bf16, {why}")})
        return found

    def decide(self, workload: Workload, sites: Sites) -> Decisions:
        """Which tensors turn to bf16, and which modules stay behind casts, from a fresh capture."""
        from paredown.graph.capture import capture

        return self.assume(workload, capture(workload), sites)

    def assume(self, workload: Workload, graph: Graph, sites: Sites) -> Decisions:
        """The same from a graph at hand."""
        if isinstance(workload.model, OnnxModule):
            return Decisions({"weights": [p for _, p in paths(workload, sites.ok)]})
        plan = _Plan(workload, graph)
        chosen = {path for _, path in paths(workload, sites.ok)}
        full = plan.left_out(chosen)
        return Decisions({"weights": plan.weights(full), "float32": full})

    def rewrite(self, workload: Workload, sites: Sites, decisions: Decisions) -> Change:
        """One cast around each module that stays in float32, one around the model."""
        edit = Editor(workload)
        if isinstance(workload.model, OnnxModule):
            return self._onnx(edit, sites, decisions)
        for path in decisions.values["float32"]:
            edit.attach(path, "cast", {"inside": "float32", "outside": "bfloat16"})
        weights = decisions.values["weights"]
        around = {"inside": "bfloat16", "outside": "float32", "weights": weights}
        edit.attach("", "cast", around)
        return edit.change(self, sites.ok, decisions)

    def _onnx(self, edit: Editor, sites: Sites, decisions: Decisions) -> Change:
        """An ONNX file: weights rounded to bf16, and the runtime told to compute in it."""
        spared = [s for s in _onnx_sites(edit.workload).ok if s not in sites.ok]
        if spared:
            raise NotApplicable(
                f"a runtime computes an ONNX file in bf16 whole: {spared[0]} cannot be left out"
            )
        edit.attr("", "precision", "bfloat16")
        for path in decisions.values["weights"]:
            module: Any = edit.model.get_submodule(path)
            edit.tensor(path, "weight", module.weight.detach().to(torch.bfloat16))
        return edit.change(self, sites.ok, decisions)


def _onnx_sites(workload: Workload) -> Sites:
    """Every float32 layer of an ONNX file, ``path:dtype``; all of them or none."""

    def judge(path: str, module: nn.Module) -> str | bool | None:
        if not isinstance(module, OnnxLayer):
            return False
        if module.refusal is not None:
            return module.refusal
        weight = module.weight
        if weight is not None and weight.dtype == torch.float32:
            return None
        return f"its weights are {dtype_name(weight)}, not float32"

    return gather(workload, "dtype", judge)


class _Plan:
    """Which modules own float32 parameters, and which of them can only change dtype together."""

    def __init__(self, workload: Workload, graph: Graph) -> None:
        self.model = workload.model
        self.usage = Usage(workload, graph)
        self.owners = {
            path: module
            for path, module in workload.model.named_modules()
            if not _stays(module) and any(True for _ in _own(module))
        }
        self.group: dict[str, str] = {path: path for path in self.owners}
        for path, module in self.owners.items():
            for p in _own(module):
                self._join(path, p)

    def _join(self, path: str, parameter: torch.Tensor) -> None:
        """Tied owners join the first of them; an owner read from outside joins its reader."""
        names = self.usage.tied(parameter)
        holders = [n.rpartition(".")[0] for n in names]
        readers = {n.module for name in names for n in self.usage.readers[name]}
        for reader in sorted(readers - set(holders)):
            holders.append(_common(path, reader))
        for other in holders:
            if other != path:
                self._merge(path, other)

    def _merge(self, a: str, b: str) -> None:
        first, second = self.group.get(a, a), self.group.get(b, b)
        self.group.setdefault(b, second)
        root = min(first, second, key=lambda p: (p.count("."), p))
        for path, head in self.group.items():
            if head in (first, second):
                self.group[path] = root

    def judge(self, path: str, module: nn.Module) -> str | bool | None:
        """The head of each group is its site; the root's own tensors are no site."""
        head = self.group.get(path)
        if not path or head is None:
            return False
        if head != path:
            return f"it changes together with {head or 'the whole model'}"
        return self.refusal(path)

    def refusal(self, path: str) -> str | None:
        """Why a site cannot turn to bf16, None when it can."""
        module = self.model.get_submodule(path)
        own = next((p for p in _own(module) if p.dtype != torch.float32), None)
        return None if own is None else f"its weights are {dtype_name(own)}, not float32"

    def left_out(self, chosen: set[str]) -> list[str]:
        """The topmost modules to keep in float32 when only ``chosen`` sites turn to bf16."""
        out = [
            path
            for path, head in self.group.items()
            if head and head not in chosen and self.refusal(head) is None
        ]
        return [p for p in out if not any(p.startswith(o + ".") for o in out)]

    def weights(self, full: list[str]) -> list[str]:
        """Names of the float32 tensors that turn to bf16."""
        names: list[str] = []
        for path, module in self.model.named_modules(remove_duplicate=False):
            if _stays(module) or any(f"{path}.".startswith(f"{o}.") for o in full):
                continue
            held = {**module._parameters, **module._buffers}
            names += [
                f"{path}.{n}" if path else n
                for n, t in held.items()
                if t is not None and t.dtype == torch.float32 and n not in _FULL
            ]
        return names


def _mixed(graph: Graph) -> str | None:
    """The first product that would meet two float dtypes, which shapes alone do not refuse."""
    for node in graph.nodes:
        if node.op.rpartition("::")[2] in _PRODUCTS:
            dtypes = {graph.tensors[t].dtype for t in node.inputs} & _FLOATS
            if len(dtypes) > 1:
                where = f"{node.module or 'the model'} ({node.line or node.op})"
                return f"{where} multiplies {' with '.join(sorted(dtypes))}"
    return None


def _stays(module: nn.Module) -> bool:
    """Forms with packed weights take any input; batch norms take bf16 with float32 tensors."""
    return isinstance(module, INTEGER) or "running_mean" in module._buffers


def _own(module: nn.Module) -> Iterator[nn.Parameter]:
    return module.parameters(recurse=False)


def _common(a: str, b: str) -> str:
    """The deepest path that holds both."""
    shared: list[str] = []
    for x, y in zip(a.split("."), b.split("."), strict=False):
        if x != y:
            break
        shared.append(x)
    return ".".join(shared)
