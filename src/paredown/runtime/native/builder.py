"""What lowering rules write with: values, buffers, steps, and operators fused into products."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from paredown.runtime.backend import COMPUTE
from paredown.runtime.native import moves, views
from paredown.runtime.native.layouts import (
    Lacking,
    copy_fields,
    planes,
    quantization,
    same_rows,
    spread,
)
from paredown.runtime.native.plan import WIDTH, Buffer, Constant, Plan, Step, Tensor

FLOATS = ("float32", "bfloat16")


@dataclass(frozen=True)
class Dequantized:
    """A quantized value that is read as floats: ``scale * (q - zero)`` in ``dtype``.

    ``q`` is a tensor of the plan or a constant; scales of a constant may be one to a channel.
    """

    q: Tensor | torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    axis: int
    dtype: torch.dtype


@dataclass(frozen=True)
class Grouped:
    """A constant matrix in packed groups of 4 or 8 bits, as `ops.dequantize_groups` reads it."""

    q: torch.Tensor
    scale: torch.Tensor
    zero: torch.Tensor
    bits: int
    columns: int
    dtype: torch.dtype

    def dense(self) -> torch.Tensor:
        """Its floats, ``(rows, columns)``."""
        return torch.ops.paredown.dequantize_groups(
            self.q, self.scale, self.zero, self.bits, self.columns, self.dtype
        )


Value = Any
"""Tensor, torch.Tensor (a constant), Dequantized, Grouped, Moved, a list of these, or a plain
value."""


@dataclass
class Product:
    """Weights of a step that is still open for fusing, in double precision where floats.

    ``v = act(acc * scale + bias + residual)`` to each output channel. Of packed ``codes`` the
    weight is their scales, ``(channels, groups)``.
    """

    kind: str
    weight: torch.Tensor
    dtype: torch.dtype
    groups: int
    bias: torch.Tensor | None = None
    scale: torch.Tensor | None = None
    out: str = "out"
    codes: Grouped | None = None

    @property
    def channels(self) -> int:
        """Output channels."""
        return self.weight.shape[0]


@dataclass
class Builder:
    """Collects a plan; `names` numbers buffers, `made` finds the step that writes a buffer."""

    buffers: dict[str, Buffer] = field(default_factory=dict)
    constants: dict[str, Constant] = field(default_factory=dict)
    weights: dict[str, torch.Tensor] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    products: dict[int, Product] = field(default_factory=dict)
    made: dict[str, Step] = field(default_factory=dict)
    env: dict[torch.fx.Node, Value] = field(default_factory=dict)
    shared: set[str] = field(default_factory=set)
    """Buffers that more than one operator of the graph reads: nothing is fused behind them."""
    copies: dict[Any, Tensor] = field(default_factory=dict)
    """Copies in another form already made, by what they are of and that form."""
    tables: dict[Any, str] = field(default_factory=dict)
    """Constants that name rows (`moves`), by what they hold."""
    site: str = ""
    name: str = ""
    """Module path and graph name of the node being lowered."""
    _known: dict[Any, str] = field(default_factory=dict)
    _count: int = 0

    def give(self, node: torch.fx.Node, value: Value) -> None:
        """Note what a node of the graph gives."""
        self.env[node] = value
        if len(node.users) > 1:
            for part in value if isinstance(value, list) else [value]:
                held = part.q if isinstance(part, Dequantized) else part
                if isinstance(held, moves.Moved):
                    held = held.made or held.base
                if isinstance(held, Tensor):
                    self.shared.add(held.buffer)

    # ---------------------------------------------------------------- buffers and steps
    def new(self, shape: Sequence[int], dtype: str, strides: Sequence[int] | None = None) -> Tensor:
        """A tensor in a buffer of its own, row-major unless told otherwise."""
        if dtype not in WIDTH:
            raise Lacking(f"no memory layout for {dtype}")
        made = tuple(strides) if strides is not None else views.contiguous(shape)
        self._count += 1
        name = f"b{self._count}"
        t = Tensor(name, dtype, tuple(shape), made)
        self.buffers[name] = Buffer(name, "arena", t.extent)
        return t

    def emit(self, op: str, tensors: dict[str, Tensor], writes: str, /, **fields: Any) -> Step:
        """Append a step that writes the tensor named ``writes``."""
        out = tensors[writes]
        step = Step(op, self.site, tensors, (writes,), {}, fields, [self.name], out.dtype)
        self.steps.append(step)
        self.made[out.buffer] = step
        return step

    def constant(self, value: torch.Tensor) -> str:
        """A plain constant, kept once."""
        value = value.detach().contiguous()
        key = (value.dtype, tuple(value.shape), _digest(value))
        if key not in self._known:
            name = f"c{len(self.constants)}"
            self._known[key] = name
            self.constants[name] = Constant(name)
            self.weights[name] = value
        return self._known[key]

    def placed(self, value: torch.Tensor) -> Tensor:
        """A constant as a tensor that steps read."""
        value = value.detach()
        kind = str(value.dtype).removeprefix("torch.")
        if kind == "float64":
            raise Lacking("no kernel computes in float64")
        if kind not in WIDTH:
            raise Lacking(f"no memory layout for {kind}")
        name = self.constant(value)
        return Tensor(name, kind, tuple(value.shape), views.contiguous(value.shape))

    def tensor(self, value: Value) -> Tensor:
        """A value as a tensor in memory, dequantized where it has to be."""
        if isinstance(value, torch.fx.Node):
            node, value = value, self.env[value]
            if isinstance(value, moves.Moved):
                value = self.env[node] = moves.settle(self, value)
        if isinstance(value, Tensor):
            return value
        if isinstance(value, moves.Moved):
            return moves.settle(self, value)
        if isinstance(value, torch.Tensor):
            return self.placed(value)
        if isinstance(value, Dequantized):
            return self.dequantized(value)
        if isinstance(value, Grouped):
            return self.placed(value.dense())
        raise Lacking(f"a {type(value).__name__} where a tensor is needed")

    def dequantized(self, value: Dequantized) -> Tensor:
        """Floats of a quantized value: computed now for a constant, by a step for a tensor."""
        kind = str(value.dtype).removeprefix("torch.")
        if isinstance(value.q, torch.Tensor):
            made = torch.ops.paredown.dequantize(
                value.q, value.scale, value.zero, value.axis, value.dtype
            )
            return self.placed(made)
        if kind not in FLOATS:
            raise Lacking(f"no kernel dequantizes to {kind}")
        t = value.q
        out = self.new(t.shape, kind, views.dense_like(t, t.shape))
        return self.elementwise(t, out)

    # ---------------------------------------------------------------- elementwise
    def elementwise(
        self, a: Tensor, out: Tensor, op: str = "none", b: Tensor | None = None, act: str = "none"
    ) -> Tensor:
        """``out = act(a op b)`` with ``b`` broadcast to ``a``. Raises ``Lacking`` for strides."""
        by = views.order(out)
        sizes = [out.shape[i] for i in by]
        bs = spread(b, out.shape) if b is not None else [0] * len(sizes)
        cut = views.broadcast(
            sizes,
            [a.strides[i] for i in by],
            [bs[i] for i in by],
            [out.strides[i] for i in by],
        )
        if cut is None:
            raise Lacking("elementwise over tensors laid out differently")
        how, out_stride = cut
        tensors = {"a": a, "out": out}
        fields: dict[str, Any] = {
            "a_stride": how.a_stride,
            "a_type": a.dtype,
            "rows": how.rows,
            "cols": how.cols,
            "act": act,
            "out_stride": out_stride,
            "out_type": out.dtype,
            **quantization("a", a),
            **quantization("out", out),
        }
        if b is not None:
            tensors["b"] = b
            fields |= {
                "op": op,
                "b_stride": how.b_stride,
                "b_rows": how.b_rows,
                "b_col": how.b_col,
                "b_type": b.dtype,
                **quantization("b", b),
            }
        self.emit("eltwise", tensors, "out", **fields)
        return out

    def copy(self, t: Tensor, strides: Sequence[int], dtype: str | None = None) -> Tensor:
        """``t`` with other strides, and as another dtype where one is named."""
        out = self.new(t.shape, dtype or t.dtype, strides)
        if out.dtype == t.dtype:
            out = replace(out, scale=t.scale, zero=t.zero)
        self.move(t, out)
        return out

    def move(self, t: Tensor, out: Tensor) -> None:
        """Copy ``t`` into ``out``, which may be a part of another tensor."""
        if (turned := planes(t, out)) is not None:
            self.emit("transpose", {"in": t, "out": out}, "out", **turned)
            return
        if t.dtype in (*FLOATS, "uint8") and same_rows(t, out):
            self.elementwise(t, out)
            return
        if t.dtype != out.dtype:
            middle = self.new(t.shape, out.dtype, views.dense_like(t, t.shape))
            self.elementwise(t, middle)
            t = middle
        self.emit("copy", {"in": t, "out": out}, "out", **copy_fields(t, out))

    # ---------------------------------------------------------------- fusing
    def product_of(self, node: torch.fx.Node | Any) -> tuple[Step, Product] | None:
        """The open product whose whole result ``node`` is, when nobody else reads it."""
        value = self.env.get(node) if isinstance(node, torch.fx.Node) else None
        if not isinstance(value, Tensor) or value.buffer in self.shared:
            return None
        step = self.made.get(value.buffer)
        product = self.products.get(id(step)) if step is not None else None
        if step is None or product is None:
            return None
        out = step.tensors[product.out]
        # A reshaped result is still the whole of it; a slice is not.
        whole = out.numel == value.numel and out.offset == value.offset
        return (step, product) if whole else None

    def retype(self, step: Step, product: Product, dtype: str, **quant: Any) -> Tensor:
        """Let a product write another dtype; returns its new result."""
        old = step.tensors[product.out]
        fresh = self.new(old.shape, dtype, old.strides)
        fresh = replace(fresh, **quant)
        self.drop(old.buffer)
        step.tensors[product.out] = fresh
        step.fields["out_type"] = dtype
        self.made[fresh.buffer] = step
        return fresh

    def drop(self, buffer: str) -> None:
        """Forget a buffer that no step uses any more."""
        self.buffers.pop(buffer, None)
        self.made.pop(buffer, None)

    # ---------------------------------------------------------------- the end
    def finish(self) -> None:
        """Turn the open products' tensors into constants."""
        for step in self.steps:
            if (p := self.products.get(id(step))) is not None:
                self._seal(step, p)

    def _seal(self, step: Step, p: Product) -> None:
        if p.codes is not None:
            held = self._packed(p.codes, p.weight.float())
            step.weight, step.precision = f"int{p.codes.bits}", str(p.dtype).removeprefix("torch.")
        else:
            held = self._dense(p)
            step.precision = step.weight = str(p.dtype).removeprefix("torch.")
        step.constants["w"] = held
        if p.bias is not None and p.bias.any():
            step.constants["bias"] = self.constant(p.bias.float())
        if p.scale is not None:
            step.constants["scale"] = self.constant(p.scale.float())
        step.role = COMPUTE

    def _dense(self, p: Product) -> str:
        weight = p.weight.to(p.dtype)
        if weight.ndim == 2:
            weight = weight[:, :, None, None]
        shape: dict[str, Any] = {
            "type": str(p.dtype).removeprefix("torch."),
            "out": weight.shape[0],
            "in": weight.shape[1] * p.groups,
            "kh": weight.shape[2],
            "kw": weight.shape[3],
            "groups": p.groups,
        }
        weight = weight.detach().contiguous()
        key = ("packed", p.kind, tuple(shape.items()), _digest(weight))
        if key not in self._known:
            name = f"w{len(self.constants)}"
            self._known[key] = name
            self.constants[name] = Constant(name, p.kind, shape)
            self.weights[name] = weight
        return self._known[key]

    def _packed(self, codes: Grouped, scale: torch.Tensor) -> str:
        """Codes, scales and zero points as the bytes of one constant (`packed_parts`)."""
        rows, groups = scale.shape
        shape: dict[str, Any] = {
            "type": "uint8",
            "bits": codes.bits,
            "group": codes.columns // groups,
            "n": rows,
            "k": codes.columns,
        }
        parts = (codes.q, scale.contiguous().view(torch.uint8), codes.zero)
        # Scales are computed anew for every reader: by what they hold.
        scales = hashlib.blake2b(parts[1].numpy().tobytes()).hexdigest()
        key = ("matvec", tuple(shape.items()), _digest(codes.q), _digest(codes.zero), scales)
        if key not in self._known:
            name = f"w{len(self.constants)}"
            self._known[key] = name
            self.constants[name] = Constant(name, "matvec", shape)
            self.weights[name] = torch.cat([part.reshape(-1) for part in parts])
        return self._known[key]

    def plan(self, name: str, inputs: list[Tensor], outputs: list[Tensor]) -> Plan:
        """The plan so far; places are not given yet."""
        return Plan(name, self.buffers, self.constants, self.steps, inputs, outputs)


def _digest(value: torch.Tensor) -> Any:
    """What tells two constants apart cheaply: their storage, or the bytes of small ones."""
    if value.numel() <= 64:
        return value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    return (value.untyped_storage().data_ptr(), value.storage_offset())
