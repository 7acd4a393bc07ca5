"""Two products of rows as one kernel, where that saves more than it costs.

The first product of a transformer's MLP (or of a pair of 1 x 1 convolutions) writes the largest
tensor of its block, and the second alone reads it. The kernel makes it in slices, for as many rows
as L2 holds (`kernels_mlp.hpp`): nothing between is written to memory, but every core reads all
weights for its rows. So the law is one of bytes: what lies between against the weights.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch

from paredown.runtime.native import sparse
from paredown.runtime.native.plan import WIDTH, Plan, Step

PAYS = 0.15
"""Bytes between over bytes of weights from which one kernel was not slower than two.

Measured on AMX with two threads (docs/decisions.md).
"""
ALWAYS = 1.0
"""The same, however many rows are left over."""
BLOCK = 32
"""Rows in blocks of which two cores share the work evenly.

Two products share what is left by columns. One kernel cannot: a core waits for the other.
"""
LEFT = 1.05
"""Most rows in whole blocks, over rows, that are worth it."""


def pays(
    plan: Plan, first: Step, second: Step, uses: Counter[str], weights: dict[str, torch.Tensor]
) -> bool:
    """Whether two steps can be one, and are expected to be faster so."""
    return fits(plan, first, second, uses) and worth(first, second, weights)


def fits(plan: Plan, first: Step, second: Step, uses: Counter[str]) -> bool:
    """Whether the second of two products alone reads what the first writes, all of it in place."""
    if first.op != "gemm" or second.op != "gemm" or "residual" in first.tensors:
        return False
    e, p = first.fields, second.fields
    out, read = first.tensors["c"], second.tensors["a"]
    buffer = plan.buffers.get(out.buffer)
    return (
        buffer is not None
        and buffer.kind == "arena"
        and uses[out.buffer] == 2
        and (out.buffer, out.offset, out.dtype) == (read.buffer, read.offset, read.dtype)
        and e["m"] == p["m"]
        and e["n"] == e["ldc"] == p["k"] == p["lda"]
        and e["out_type"] == p["a_type"]
        and e.get("out_zero", 0) == p.get("a_zero", 0)
        and WIDTH[e["a_type"]] == WIDTH[p["a_type"]]
        # A narrow tensor between is a bottleneck's: its readers may have better partners.
        and e["n"] >= max(e["k"], p["n"])
    )


def worth(first: Step, second: Step, weights: dict[str, torch.Tensor]) -> bool:
    """Whether one kernel is expected to be faster than two, none of which skips zeros."""
    e, p = first.fields, second.fields
    share = inner_bytes(first) / _weight_bytes(e, p)
    even = -(-e["m"] // BLOCK) * BLOCK <= LEFT * e["m"]
    if share < (PAYS if even else ALWAYS):
        return False
    return all(_zeros(weights[s.constants["w"]]) < sparse.ZEROS for s in (first, second))


def inner_bytes(first: Step) -> int:
    """Bytes of what the first product writes: by so many the arena's traffic falls, twice."""
    e = first.fields
    return e["m"] * e["n"] * WIDTH[e["out_type"]]


def _weight_bytes(e: dict[str, Any], p: dict[str, Any]) -> int:
    return e["n"] * (e["k"] + p["n"]) * WIDTH[e["a_type"]]


def _zeros(weight: torch.Tensor) -> float:
    return float((weight == 0).double().mean()) if weight.numel() else 0.0


def merged(first: Step, second: Step) -> Step:
    """Both as one step, the fields of the first under ``expand_``."""
    part = {
        "site": first.site,
        "op": first.op,
        "precision": first.precision,
        "weight": first.weight or "",
    }
    follows = ("a_type", "a_zero", "lda", "m", "k")
    return Step(
        "mlp",
        second.site,
        {"expand_a": first.tensors["a"]} | {k: t for k, t in second.tensors.items() if k != "a"},
        second.writes,
        {f"expand_{k}": c for k, c in first.constants.items()} | second.constants,
        {f"expand_{k}": v for k, v in first.fields.items()}
        | {k: v for k, v in second.fields.items() if k not in follows},
        first.fused + second.fused,
        second.precision,
        second.role,
        second.weight,
        parts=[part],
    )
