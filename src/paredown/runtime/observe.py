"""What one eager run really called: operators, the dtypes they were given, their modules."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.runtime.backend import COMPUTE, Asked, Ran
from paredown.workload import Workload

FLOAT_PRODUCTS = frozenset(
    {
        "conv1d",
        "conv2d",
        "conv3d",
        "conv_transpose1d",
        "conv_transpose2d",
        "conv_transpose3d",
        "matmul",
        "einsum",
        "scaled_dot_product_attention",
        "mm",
        "addmm",
        "bmm",
        "baddbmm",
        "convolution",
        "mkldnn_rnn_layer",
        "lstm",
        "gru",
        "linear",
        "_scaled_dot_product_flash_attention_for_cpu",
        "_scaled_dot_product_attention_math",
        "mkldnn_linear",
    }
)
"""aten operators that multiply matrices in the dtype of their inputs."""

PACKED_PRODUCTS = {
    "_weight_int8pack_mm": ("int8", "float"),
    "_weight_int4pack_mm_for_cpu": ("int4", "float"),
    "_int_mm": ("int8", "int8"),
    "linear_dynamic": ("int8", "int8"),
    "linear_dynamic_fp16": ("float16", "float"),
}
"""Operators over packed weights: how the weight is held, and what the product computes in."""

SIMULATED = "eager torch multiplies the dequantized values in float: the saving is simulated"


@dataclass
class Observed:
    """One run's matrix products and quantizers."""

    ran: list[Ran] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)


def observe(workload: Workload) -> Observed:
    """Run the workload once and record what it called. The model's hooks are put back as found."""
    out = Observed()
    stack: list[str] = [""]
    with _paths(workload.model, stack), torch.inference_mode(), _Recorder(out, stack):
        workload.once()
    out.ran = [_held_against(r, out.asked.get(r.site)) for r in out.ran]
    return out


class _Recorder(TorchDispatchMode):
    """Records matrix products and which quantized tensors they were fed with."""

    def __init__(self, out: Observed, stack: list[str]) -> None:
        super().__init__()
        self.out, self.stack = out, stack
        # Which tensors came out of a dequantize: by identity, kept alive so that ids stay unique.
        self.marks: dict[int, tuple[str, torch.Tensor]] = {}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        if func.namespace == "paredown":
            self._mark(name, args, result)
        elif name in PACKED_PRODUCTS:
            self._packed(name, args)
        elif name in FLOAT_PRODUCTS:
            self._product(name, args)
        elif func.is_view or name in ("_to_copy", "clone"):
            self._carry(args, result)
        return result

    def _mark(self, name: str, args: tuple[Any, ...], result: Any) -> None:
        if name == "quantize":
            self._set(result, "static")
        elif name == "dynamic_quantize":
            self._set(result[0], "dynamic")
        elif name == "dequantize_groups":
            self._set(result, "int4" if args[3] == 4 else "int8")
        elif name == "dequantize":
            made = self.marks.get(id(args[0]))
            self._set(result, made[0] if made else "int8")

    def _set(self, tensor: torch.Tensor, mark: str) -> None:
        self.marks[id(tensor)] = (mark, tensor)

    def _carry(self, args: tuple[Any, ...], result: Any) -> None:
        first = args[0] if args else None
        if isinstance(first, torch.Tensor) and isinstance(result, torch.Tensor):
            made = self.marks.get(id(first))
            if made is not None:
                self._set(result, made[0])

    def _product(self, name: str, args: tuple[Any, ...]) -> None:
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        dtype = str(tensors[0].dtype).removeprefix("torch.") if tensors else "float32"
        marks = {self.marks[id(t)][0] for t in tensors if id(t) in self.marks}
        weight = next((m for m in ("int4", "int8") if m in marks), None)
        activation = next((m for m in ("static", "dynamic") if m in marks), None)
        site = self.stack[-1]
        old = self.out.asked.get(site, Asked(dtype=dtype))
        self.out.asked[site] = Asked(
            old.weight or weight,
            old.activation or activation,
            dtype if dtype != "float32" else old.dtype,
        )
        self.out.ran.append(Ran(site, name, dtype, role=COMPUTE))
        if weight is not None:
            self.out.ran.append(Ran(site, "weight", weight))

    def _packed(self, name: str, args: tuple[Any, ...]) -> None:
        held, computed = PACKED_PRODUCTS[name]
        first = next(a for a in args if isinstance(a, torch.Tensor))
        dtype = str(first.dtype).removeprefix("torch.")
        site = self.stack[-1]
        self.out.asked[site] = Asked(held, "dynamic" if computed == "int8" else None, dtype)
        self.out.ran.append(Ran(site, name, "int8" if computed == "int8" else dtype, role=COMPUTE))
        self.out.ran.append(Ran(site, "weight", held))


def _held_against(ran: Ran, asked: Asked | None) -> Ran:
    if ran.role != COMPUTE or asked is None or ran.precision == asked.compute:
        return ran
    return Ran(ran.site, ran.op, ran.precision, SIMULATED, ran.role)


@contextmanager
def _paths(model: nn.Module, stack: list[str]) -> Generator[None]:
    """Keep ``stack`` at the path of the module that is running."""
    handles: list[Any] = []
    for path, module in model.named_modules():

        def enter(_m: nn.Module, _a: Any, path: str = path) -> None:
            stack.append(path)

        def leave(_m: nn.Module, _a: Any, _o: Any) -> None:
            stack.pop()

        handles.append(module.register_forward_pre_hook(enter))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
