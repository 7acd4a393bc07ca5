"""What the numeric techniques share: whose weights may be replaced, and the affine mapping."""

# torch keeps its modules' tables and base classes private.
# pyright: reportPrivateUsage=false

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from paredown.analysis.formats import Fixed
from paredown.graph.graph import Graph, Node
from paredown.runtime.onnx_layers import OnnxLayer
from paredown.technique import Sites
from paredown.workload import Workload

Kind = Literal["linear", "conv", "conv_transpose", "embedding", "recurrent"]

FLOATS = (torch.float32, torch.bfloat16, torch.float16)

_KINDS: tuple[tuple[type[nn.Module], Kind], ...] = (
    (nn.Linear, "linear"),
    (nn.Conv1d, "conv"),
    (nn.Conv2d, "conv"),
    (nn.Conv3d, "conv"),
    (nn.modules.conv._ConvTransposeNd, "conv_transpose"),
    (nn.Embedding, "embedding"),
    (nn.EmbeddingBag, "embedding"),
    (nn.RNNBase, "recurrent"),
    (nn.RNNCellBase, "recurrent"),
)


def is_conv1d(module: nn.Module) -> bool:
    """Whether a module is Hugging Face's ``Conv1D``: a linear whose weight is ``(in, out)``."""
    cls = type(module)
    return cls.__name__ == "Conv1D" and cls.__module__ == "transformers.pytorch_utils"


def kind_of(module: nn.Module) -> Kind | None:
    """What a module computes with its ``weight``, None when no numeric technique knows it."""
    if isinstance(module, OnnxLayer):
        return module.kind
    if is_conv1d(module):
        return "linear"
    return next((kind for cls, kind in _KINDS if isinstance(module, cls)), None)


def matrix(module: nn.Module) -> Tensor:
    """The weight with output channels first: ``(out, in)`` of a linear, as stored for the rest."""
    weight: Any = module.weight
    return weight.detach().t() if is_conv1d(module) else weight.detach()


def dtype_name(tensor: Tensor | None) -> str | None:
    """``float32`` and so on; None for None."""
    return None if tensor is None else str(tensor.dtype).removeprefix("torch.")


def originals(workload: Workload) -> dict[str, str]:
    """Current module path -> the original path it comes from, for those that moved."""
    return {now: old for old, paths in workload.aliases.items() for now in paths}


def site(path: str, workload: Workload, role: str) -> str:
    """The site of a current module path, in the original model's names."""
    return f"{originals(workload).get(path, path)}:{role}"


def paths(workload: Workload, sites: Iterable[str]) -> list[tuple[str, str]]:
    """``(site, current module path)`` of every module that the sites stand for."""
    return [(s, p) for s in sites for p in workload.now(s.partition(":")[0])]


def gather(
    workload: Workload, role: str, judge: Callable[[str, nn.Module], str | bool | None]
) -> Sites:
    """Sites over all modules: ``judge`` says None (may act), a reason, or False (no concern).

    A site that stands for several current modules is refused when one of them is.
    """
    ok: dict[str, None] = {}
    refused: dict[str, str] = {}
    for path, module in workload.model.named_modules():
        verdict = judge(path, module)
        if verdict is False:
            continue
        name = site(path, workload, role)
        if isinstance(verdict, str):
            refused[name] = verdict
        else:
            ok[name] = None
    return Sites(tuple(s for s in ok if s not in refused), refused)


def weighted_sites(workload: Workload, judge: Callable[[str, nn.Module], str | None]) -> Sites:
    """Sites ``path:weight`` over the layers with a weight, by kind: ``judge(kind, module)``.

    ``judge`` says None (may act) or a reason.
    """

    def whole(path: str, module: nn.Module) -> str | bool | None:
        kind = kind_of(module)
        if kind is None:
            return False
        if not path:
            return "the model is this layer alone: wrap it in a module"
        return judge(kind, module)

    return gather(workload, "weight", whole)


class Usage:
    """Who reads which parameter in a captured run, and which modules ran."""

    def __init__(self, workload: Workload, graph: Graph) -> None:
        self.graph, self.model = graph, workload.model
        self.names: dict[int, list[str]] = defaultdict(list)
        self.paths: dict[int, list[str]] = defaultdict(list)
        for path, module in workload.model.named_modules(remove_duplicate=False):
            self.paths[id(module)].append(path)
            for name, p in module.named_parameters(recurse=False, remove_duplicate=False):
                self.names[id(p)].append(f"{path}.{name}" if path else name)
        self.readers: dict[str, list[Node]] = defaultdict(list)
        self.nodes: dict[str, list[Node]] = defaultdict(list)
        named = {t.id: t.name for t in graph.tensors.values() if t.kind == "parameter" and t.name}
        for node in graph.nodes:
            self.nodes[node.module].append(node)
            for t in dict.fromkeys(node.inputs):
                if t in named:
                    self.readers[named[t]].append(node)

    def tied(self, parameter: Tensor) -> list[str]:
        """Every name of one parameter."""
        return self.names[id(parameter)]

    def why_not(self, module: nn.Module) -> str | None:
        """Why this module's weight cannot be replaced by a form of ours, or None when it can.

        The captured run decides: the weight must be read, and by this very module only.
        """
        if isinstance(module, OnnxLayer) and module.refusal:
            return module.refusal
        weight = module._parameters.get("weight")
        if weight is None:
            return "its weight is computed (a parametrization or weight norm): bake it in first"
        if weight.dtype not in FLOATS:
            return f"its weight is {dtype_name(weight)}, not a float type"
        if not is_conv1d(module) and not _plain_forward(module):
            return f"{type(module).__name__} has its own forward"
        if module._forward_hooks or module._forward_pre_hooks:
            return "it carries hooks, which a swap would lose"
        names = self.tied(weight)
        here = self.paths[id(module)]
        other = next((n for n in names if n.rpartition(".")[0] not in here), None)
        if other is not None:
            return f"its weight is shared with {other}"
        readers = [n for name in names for n in self.readers[name]]
        if not readers:
            return "it never ran on the example inputs"
        outside = next((n for n in readers if n.module not in here), None)
        if outside is not None:
            where = outside.module or "the model's own forward"
            return f"its weight is read from outside, by {where} ({outside.op})"
        return None


def _plain_forward(module: nn.Module) -> bool:
    if isinstance(module, OnnxLayer):
        return True
    base = next(cls for cls, _ in _KINDS if isinstance(module, cls))
    return type(module).forward is base.forward or (
        base is nn.modules.conv._ConvTransposeNd
        and type(module).forward
        in (nn.ConvTranspose1d.forward, nn.ConvTranspose2d.forward, nn.ConvTranspose3d.forward)
    )


def symmetric(weight: Tensor, bits: int, per_channel: bool) -> tuple[Tensor, Tensor]:
    """Symmetric integers of a weight: ``(int8 weight, float32 scales)``, one per output channel.

    ``q = round(w / s)`` with ``s = max|w| / (2**(bits-1) - 1)`` (Krishnamoorthi 2018, section 2.2);
    a channel of zeros gets scale 1. ``|w - q s| <= s / 2`` everywhere.
    """
    top = 2 ** (bits - 1) - 1
    w = weight.detach().to(torch.float32)
    rows = w.reshape(w.shape[0], -1) if per_channel else w.reshape(1, -1)
    largest = rows.abs().amax(dim=1)
    scale = torch.where(largest > 0, largest / top, torch.ones_like(largest))
    q = Fixed(bits - 1, symmetric=True).round(rows / scale.unsqueeze(1))
    return q.to(torch.int8).reshape(w.shape).contiguous(), scale


def affine_range(low: float, high: float, *, symmetric: bool = False) -> tuple[float, int]:
    """Scale and zero point of uint8 over ``[low, high]`` widened to hold 0, so that 0 is exact.

    ``symmetric`` widens a range of both signs to ``[-largest, largest]``: zero point 128, which is
    int8 without a zero point to a backend.
    """
    if symmetric and low < 0:
        largest = max(-low, high)
        return (largest / 127.0, 128) if largest > 1.6e-36 else (1.0, 128)
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255.0
    # Below the smallest normal float32 a quotient by the scale would overflow.
    if scale < 1.2e-38:
        return 1.0, 0
    return scale, int(min(255, max(0, round(-low / scale))))
