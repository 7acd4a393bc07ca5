"""Attentions that go through torch's scaled dot product, and what they read on calibration data."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from paredown.errors import InputError
from paredown.graph.graph import Graph
from paredown.runtime.quantized_attention import asked, attention_weights
from paredown.techniques.quantize.observe import Histogram
from paredown.workload import Workload

FUSED = "aten::_scaled_dot_product"
PARTS = ("query", "key", "value", "weight")


def attentions(workload: Workload, graph: Graph) -> dict[str, str | None]:
    """Path of each module whose own code calls torch's attention -> why its products cannot be
    coded, None where they can.
    """
    out: dict[str, str | None] = {}
    for node in graph.nodes:
        if not node.op.startswith(FUSED) and node.op != "aten::scaled_dot_product_attention":
            continue
        shapes = [graph.tensors[t].shape for t in node.inputs[:2]]
        why: str | None = None
        if not node.module:
            why = "the model's own code calls it: no module to put the quantizers on"
        elif node.module in out:
            why = "it runs several attentions with one module's ranges"
        elif any(len(s) != 4 for s in shapes):
            why = "its queries and keys are not (batch, heads, tokens, dim)"
        elif type(workload.model.get_submodule(node.module)) is nn.MultiheadAttention:
            why = "nn.MultiheadAttention reads its weights itself"
        out[node.module] = why
    return out


def attention_histograms(workload: Workload, at: Iterable[str]) -> dict[str, dict[str, Histogram]]:
    """Histograms of queries, keys, values and softmax weights of each attention module in ``at``.

    Raises ``InputError`` naming a module where one is not finite, or that no input reaches.
    """
    seen = {path: {part: Histogram() for part in PARTS} for path in at}
    if not seen:
        return seen
    copy = workload.copy()
    copy.model.eval()
    running: list[str] = []
    for path in seen:
        module = copy.model.get_submodule(path)
        module.register_forward_pre_hook(lambda *_, path=path: running.append(path))
        module.register_forward_hook(lambda *_: (running.pop(), None)[1], always_call=True)
    with torch.inference_mode(), _Look(seen, running):
        for args, kwargs in copy.calibration_inputs():
            copy.once((args, kwargs))
    for path, parts in seen.items():
        if not parts["weight"].reach:
            raise InputError(f"{path}: no calibration input reaches its attention; leave it out")
    return seen


class _Look(TorchFunctionMode):
    """Adds what each call of torch's attention reads to the running module's histograms."""

    def __init__(self, seen: dict[str, dict[str, Histogram]], running: list[str]) -> None:
        super().__init__()
        self.seen, self.running = seen, running

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Every function runs as it is."""
        if func is F.scaled_dot_product_attention and self.running:
            path = self.running[-1]
            q, k, v, mask, causal, scale = asked(args, kwargs)
            found = (q, k, v, attention_weights(q, k, mask, causal, scale))
            for part, x in zip(PARTS, found, strict=True):
                try:
                    self.seen[path][part].add(x)
                except InputError as e:
                    raise InputError(f"{path}: {e}; look at the data or leave it out") from None
        return func(*args, **(kwargs or {}))
