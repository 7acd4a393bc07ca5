"""A plan made ready on this machine: weights packed for its instruction set, torch in between."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from paredown import kernels
from paredown.errors import ArtefactError, LoweringError
from paredown.runtime.native import sparse
from paredown.runtime.native.plan import WIDTH, Constant, Plan, Step, Tensor

NAMESPACES = ("aten", "paredown")
REFUSED = ("from_file",)
"""Operators of torch that read files: no plan may name them."""


class Runner:
    """Runs a plan: the engine for native steps, torch for the others, over one arena."""

    def __init__(self, plan: Plan, weights: dict[str, torch.Tensor], threads: int) -> None:
        module = kernels.native()
        if module is None:
            raise LoweringError(kernels.why_missing() or "the native module is missing")
        self.plan, self.threads = plan, threads
        self.isa = kernels.isa()
        self._sizes = {
            k: [b.nbytes for b in sorted(plan.buffers.values(), key=_index) if b.kind == k]
            for k in ("input", "output")
        }
        self.engine: Any = module.Engine(
            self.isa, threads, plan.arena_bytes, self._sizes["input"], self._sizes["output"]
        )
        self._forms = sparse.forms(plan, weights, self.isa)
        self._places = self._constants(weights)
        self._segments: list[tuple[Step | None, int, int]] = []
        self._build()
        self._held = _TorchSide(self, weights) if any(s for s, _, _ in self._segments) else None
        self._shapes = [(t.shape, t.strides, getattr(torch, t.dtype)) for t in plan.outputs]
        self._whole = len(self._segments) == 1 and self._held is None

    def __call__(self, leaves: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Results of contiguous inputs of the plan's shapes."""
        outs = [torch.empty_strided(s, st, dtype=d) for s, st, d in self._shapes]
        given = _bytes(leaves)
        taken = _bytes(outs)
        if self._whole:
            self.engine.run(given, taken, 0, self.engine.steps)
            return outs
        for step, first, last in self._segments:
            if step is None:
                self.engine.run(given, taken, first, last)
            else:
                assert self._held is not None
                self._held.run(step, leaves, outs)
        return outs

    def seconds(self, leaves: Sequence[torch.Tensor], repeats: int = 5) -> list[float]:
        """The least seconds of each step over some runs, in the plan's order."""
        import time

        best = [float("inf")] * len(self.plan.steps)
        native = [i for i, s in enumerate(self.plan.steps) if s.fallback is None]
        outs = [torch.empty_strided(s, st, dtype=d) for s, st, d in self._shapes]
        given, taken = _bytes(leaves), _bytes(outs)
        where = {id(s): i for i, s in enumerate(self.plan.steps)}
        for _ in range(repeats):
            for step, first, last in self._segments:
                if step is None:
                    spent = self.engine.run_timed(given, taken, first, last)
                    for k in range(first, last):
                        best[native[k]] = min(best[native[k]], spent[k])
                else:
                    start = time.perf_counter()
                    assert self._held is not None
                    self._held.run(step, leaves, outs)
                    i = where[id(step)]
                    best[i] = min(best[i], time.perf_counter() - start)
        return best

    def kernel(self, step: Step) -> str:
        """The kernel that runs a native step, as ``gemm_amx`` or ``sparse_tiles_amx``."""
        return f"{self._form(step) or step.op}_{self.isa}"

    def _form(self, step: Step) -> str | None:
        return self._forms.get(step.constants.get("w", "")) if step.op == "gemm" else None

    @property
    def weight_bytes(self) -> int:
        """Bytes of packed weights and constants as they are held."""
        return int(self.engine.weight_bytes) + (self._held.nbytes if self._held else 0)

    @property
    def arena_bytes(self) -> int:
        """Bytes of the arena and of the kernels' scratch areas."""
        return int(self.engine.arena_bytes) + int(self.engine.scratch_bytes)

    # ---------------------------------------------------------------- building
    def _constants(self, weights: dict[str, torch.Tensor]) -> dict[str, int]:
        out: dict[str, int] = {}
        torch_only = _torch_only(self.plan)
        for name, c in self.plan.constants.items():
            if name not in weights:
                raise ArtefactError(f"the native plan's weights lack {name}")
            value = weights[name]
            if name in torch_only:
                continue
            if not c.pack:
                out[name] = self.engine.constant(_raw(value))
                continue
            fits = str(value.dtype).removeprefix("torch.") == c.shape["type"]
            if not fits:
                raise ArtefactError(f"the native plan's weight {name} is of another dtype")
            if c.pack == "matvec":
                out[name] = self._matvec(name, c, value)
                continue
            wide = value.float() if value.dtype == torch.bfloat16 else value
            out[name] = self.engine.weights(
                self._forms.get(name, c.pack), c.shape, wide.contiguous().numpy()
            )
        return out

    def _matvec(self, name: str, c: Constant, held: torch.Tensor) -> int:
        """Whole numbers around zero, as the kernels take them, with scales and zero points."""
        try:
            q, scale, zero = packed_parts(c.shape, held)
        except (KeyError, TypeError, ValueError, ZeroDivisionError, RuntimeError) as e:
            raise ArtefactError(f"the native plan's weight {name} is damaged: {e}") from e
        half = 1 << (c.shape["bits"] - 1)
        fields = {k: c.shape[k] for k in ("bits", "group", "n", "k")}
        whole, zeros = ((t.to(torch.int16) - half).to(torch.int8) for t in (q, zero))
        return self.engine.matvec(
            fields, whole.contiguous().numpy(), scale.numpy(), zeros.contiguous().numpy()
        )

    def _build(self) -> None:
        added = 0
        for step in self.plan.steps:
            if step.fallback is not None:
                self._segments.append((step, 0, 0))
                continue
            fields: dict[str, Any] = dict(step.fields)
            for name, t in step.tensors.items():
                fields[name] = self._place(t)
            for name, constant in step.constants.items():
                fields[name] = ("constant", self._places[constant], 0)
            try:
                self.engine.add("sparse" if self._form(step) else step.op, fields)
            except (ValueError, RuntimeError) as e:
                raise LoweringError(f"native: {step.op} of {step.site or 'the model'}: {e}") from e
            added += 1
            if self._segments and self._segments[-1][0] is None:
                self._segments[-1] = (None, self._segments[-1][1], added)
            else:
                self._segments.append((None, added - 1, added))
        self.engine.finish()

    def _place(self, t: Tensor) -> tuple[str, int, int]:
        width = WIDTH[t.dtype]
        if t.buffer in self._places:
            return ("constant", self._places[t.buffer], t.offset * width)
        b = self.plan.buffers.get(t.buffer)
        if b is None or t.extent > b.nbytes or t.offset < 0 or min(t.strides, default=0) < 0:
            raise ArtefactError(f"the native plan is damaged: {t.buffer} does not hold {t}")
        if b.kind == "arena":
            if b.offset < 0 or b.offset + b.nbytes > self.plan.arena_bytes:
                raise ArtefactError(f"the native plan is damaged: {t.buffer} leaves the arena")
            return ("arena", 0, b.offset + t.offset * width)
        return (b.kind, b.index, t.offset * width)


class _TorchSide:
    """Steps run by torch: operators by name, tensors as views of the arena."""

    def __init__(self, runner: Runner, weights: dict[str, torch.Tensor]) -> None:
        self.plan = runner.plan
        self._arena = torch.from_numpy(np.asarray(runner.engine.arena))
        names = {n for s in self.plan.steps if s.fallback is not None for n in s.constants.values()}
        self._constants = {n: weights[n] for n in names}
        self._constants |= {
            t.buffer: weights[t.buffer]
            for s in self.plan.steps
            if s.fallback is not None
            for t in s.tensors.values()
            if t.buffer in weights
        }
        self._ops = {
            id(s): _operator(s.fields["target"]) for s in self.plan.steps if s.fallback is not None
        }
        self._views: dict[tuple[int, str], torch.Tensor] = {}

    @property
    def nbytes(self) -> int:
        return sum(c.nbytes for c in self._constants.values())

    def run(self, step: Step, leaves: Sequence[torch.Tensor], outs: Sequence[torch.Tensor]) -> None:
        def read(name: str) -> torch.Tensor:
            return self._tensor(step, name, leaves, outs)

        def decode(value: Any) -> Any:
            if isinstance(value, list):
                return [decode(v) for v in value]
            if not isinstance(value, dict):
                return value
            ((kind, what),) = value.items()
            if kind == "tensor":
                return read(what)
            if kind == "constant":
                return self._constants[step.constants[what]]
            return torch.device(what) if kind == "device" else getattr(torch, what)

        with torch.inference_mode():
            kwargs = {k: decode(v) for k, v in step.fields["kwargs"].items()}
            made = self._ops[id(step)](*decode(step.fields["args"]), **kwargs)
            parts = [] if made is None else made if isinstance(made, (tuple, list)) else [made]
            for name, part in zip(step.writes, parts, strict=True):
                read(name).copy_(part)

    def _tensor(
        self, step: Step, name: str, leaves: Sequence[torch.Tensor], outs: Sequence[torch.Tensor]
    ) -> torch.Tensor:
        if (known := self._views.get((id(step), name))) is not None:
            return known
        t = step.tensors[name]
        dtype = getattr(torch, t.dtype)
        if t.buffer in self._constants:
            return self._constants[t.buffer].as_strided(t.shape, t.strides, t.offset)
        b = self.plan.buffers[t.buffer]
        if b.kind != "arena":
            whole = (leaves if b.kind == "input" else outs)[b.index]
            return whole.as_strided(t.shape, t.strides, whole.storage_offset() + t.offset)
        raw = self._arena[b.offset : b.offset + b.nbytes].view(dtype)
        view = raw.as_strided(t.shape, t.strides, raw.storage_offset() + t.offset)
        self._views[id(step), name] = view
        return view


def _operator(name: str) -> Any:
    """An operator of torch by its full name, from the namespaces a plan may use."""
    parts = name.split(".")
    found: Any = None
    if len(parts) == 3 and parts[0] in NAMESPACES and parts[1] not in REFUSED:
        packet = getattr(getattr(torch.ops, parts[0]), parts[1], None)
        found = getattr(packet, parts[2], None)
    if found is None:
        raise ArtefactError(f"the native plan names an operator that is not allowed: {name}")
    return found


def packed_parts(
    shape: dict[str, Any], held: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Codes ``(n, k)``, scales and zero points ``(n, groups)`` of a ``matvec`` constant's bytes.

    Raises ``ValueError`` where they are not as many as the shape says.
    """
    n, k, groups = shape["n"], shape["k"], shape["k"] // shape["group"]
    row = k if shape["bits"] == 8 else -(-k // 2)
    sizes = (n * row, 4 * n * groups, n * groups)
    if held.ndim != 1 or held.numel() != sum(sizes):
        raise ValueError(f"{held.numel()} bytes where {sum(sizes)} are needed")
    q, scale, zero = held.split(sizes)
    q = q.reshape(n, row)
    if shape["bits"] == 4:
        q = torch.stack((q & 15, q >> 4), -1).flatten(1)[:, :k]
    return q, scale.clone().view(torch.float32).reshape(n, groups), zero.reshape(n, groups)


def _torch_only(plan: Plan) -> set[str]:
    """Constants that no native step reads."""
    native = {n for s in plan.steps if s.fallback is None for n in s.constants.values()}
    native |= {t.buffer for s in plan.steps if s.fallback is None for t in s.tensors.values()}
    return set(plan.constants) - native


def _index(b: Any) -> int:
    return b.index


def _bytes(tensors: Sequence[torch.Tensor]) -> list[Any]:
    return [_raw(t) for t in tensors]


def _raw(t: torch.Tensor) -> Any:
    """The bytes of a dense tensor, as numpy reads them."""
    flat = t.as_strided((t.numel(),), (1,), t.storage_offset())
    return flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
