"""What one eager run really called: operators, the dtypes they were given, their modules."""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.runtime.backend import COMPUTE, Asked, Ran
from paredown.runtime.packed import Packed
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
    "qlinear_pointwise": ("int8", "int8"),
    "qconv_pointwise": ("int8", "int8"),
}
"""Operators over packed weights: how the weight is held, and what the product computes in."""

SIMULATED = "torch multiplies the dequantized values in float: the saving is simulated"
UNPACKED = "its weight is dequantized in every run"


@dataclass
class Observed:
    """One run's matrix products and quantizers."""

    ran: list[Ran] = field(default_factory=list)
    asked: dict[str, Asked] = field(default_factory=dict)


@dataclass(frozen=True)
class _Frame:
    """A module that is running: its path, itself, and the dtype of its first input tensor."""

    path: str
    module: nn.Module | None = None
    dtype: str = "float32"


def observe(workload: Workload, unlowered: Mapping[str, str] | None = None) -> Observed:
    """Run the workload once and record what it called. The model's hooks are put back as found.

    ``unlowered`` says why a quantized layer was not put on packed operators, by module path.
    """
    out = Observed()
    stack = [_Frame("")]
    with _paths(workload.model, stack), torch.inference_mode(), _Recorder(out, stack):
        workload.once()
    why = unlowered or {}
    out.ran = [_held_against(r, out.asked.get(r.site), why.get(r.site)) for r in out.ran]
    return out


class _Recorder(TorchDispatchMode):
    """Records matrix products and which quantized tensors they were fed with."""

    def __init__(self, out: Observed, stack: list[_Frame]) -> None:
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
        elif name in ("dynamic_quantize", "dynamic_quantize_rows"):
            self._set(result[0], "dynamic")
        elif name == "dequantize_groups":
            self._set(result, "int4" if args[3] == 4 else "int8")
        elif name == "dequantize_nf4":
            self._set(result, "nf4")
        elif name == "dequantize_codebook":
            self._set(result, "codebook")
        elif name == "dequantize_two_of_four":
            self._set(result, "int2")
        elif name in ("binary_product", "binary_layer"):
            path = self.stack[-1].path
            self.out.asked[path] = Asked("binary", None, "binary")
            self.out.ran.append(Ran(path, name, "binary", role=COMPUTE))
            self.out.ran.append(Ran(path, "weight", "binary"))
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
        weight = next((m for m in ("int2", "int4", "int8", "nf4", "codebook") if m in marks), None)
        activation = next((m for m in ("static", "dynamic") if m in marks), None)
        site = self.stack[-1].path
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
        at = self.stack[-1]
        if isinstance(at.module, Packed):
            # Several integer products may make up one float product: the module knows.
            asked = at.module.asked(at.dtype)
            ran = asked.compute if held == asked.weight else computed
        else:
            first = next(a for a in args if isinstance(a, torch.Tensor))
            dtype = str(first.dtype).removeprefix("torch.")
            asked = Asked(held, "dynamic" if computed == "int8" else None, dtype)
            ran = "int8" if computed == "int8" else dtype
        self.out.asked[at.path] = asked
        self.out.ran.append(Ran(at.path, name, ran, role=COMPUTE))
        self.out.ran.append(Ran(at.path, "weight", held))


def _held_against(ran: Ran, asked: Asked | None, unlowered: str | None) -> Ran:
    if ran.role != COMPUTE or asked is None:
        return ran
    if ran.precision != asked.compute:
        why = f"{SIMULATED} ({unlowered})" if unlowered else SIMULATED
        return replace(ran, fallback=why)
    return replace(ran, fallback=f"{UNPACKED} ({unlowered})") if unlowered else ran


@contextmanager
def _paths(model: nn.Module, stack: list[_Frame]) -> Generator[None]:
    """Keep the module that is running on top of ``stack``."""
    handles: list[Any] = []
    for path, module in model.named_modules():

        def enter(m: nn.Module, args: Any, kwargs: Any, path: str = path) -> None:
            given = (*args, *kwargs.values())
            first = next((a for a in given if isinstance(a, torch.Tensor)), None)
            dtype = "float32" if first is None else str(first.dtype).removeprefix("torch.")
            stack.append(_Frame(path, m, dtype))

        def leave(_m: nn.Module, _a: Any, _o: Any) -> None:
            stack.pop()

        handles.append(module.register_forward_pre_hook(enter, with_kwargs=True))
        handles.append(module.register_forward_hook(leave, always_call=True))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
