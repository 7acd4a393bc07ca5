"""Products that the cards of sparse kernels time: the engine's, dense and sparse, and torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from paredown import kernels

Run = Callable[[], Any]

NAMES = {
    torch.float32: "float32",
    torch.bfloat16: "bfloat16",
    torch.uint8: "uint8",
    torch.int8: "int8",
}


def pruned(weight: Tensor, share: float, block: tuple[int, int], seed: int) -> Tensor:
    """``weight`` with ``share`` of its blocks (outputs x inputs), chosen at random, zero."""
    rows, columns = weight.shape
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(-(-rows // block[0]), -(-columns // block[1]), generator=generator)
    keep = torch.ones(scores.numel(), dtype=torch.bool)
    keep[scores.flatten().argsort()[: round(share * scores.numel())]] = False
    whole = keep.view_as(scores).repeat_interleave(block[0], 0).repeat_interleave(block[1], 1)
    return torch.where(whole[:rows, :columns], weight, torch.zeros_like(weight))


def product(
    isa: str, form: str | None, a: Tensor, weight: Tensor, room: Tensor | None = None
) -> tuple[Run, Tensor]:
    """``a weight^T`` by the engine on one thread, weights dense (None) or in a sparse form.

    ``a`` is float32, bfloat16 or uint8 (zero point 128), the result, which the run fills, float32.
    It lies in ``room`` where given: layers of a network write into one arena again and again.
    """
    (m, k), n = a.shape, weight.shape[0]
    module: Any = kernels.native()
    out = torch.empty(m, n) if room is None else room[: m * n].view(m, n)
    engine = module.Engine(isa, 1, 0, [a.nbytes], [out.nbytes])
    shape = {"type": NAMES[weight.dtype], "out": n, "in": k}
    kind = "dense" if form is None else f"sparse_{form}"
    wide = weight.float() if weight.dtype == torch.bfloat16 else weight
    at = engine.weights(kind, shape, wide.contiguous().numpy())
    fields: dict[str, Any] = {"a": ("input", 0, 0), "c": ("output", 0, 0), "w": ("constant", at, 0)}
    fields |= {"lda": k, "ldc": n, "m": m, "n": n, "k": k, "a_type": NAMES[a.dtype]}
    if a.dtype == torch.uint8:
        fields["a_zero"] = 128
    engine.add("gemm" if form is None else "sparse", fields)
    engine.finish()
    given = a.contiguous().view(torch.uint8).numpy()
    taken = out.view(torch.uint8).numpy()
    return lambda: engine.run([given], [taken], 0, 1), out


def onednn(a: Tensor, weight: Tensor) -> Run:
    """The same product by oneDNN through torch, its weights reordered ahead."""
    if a.dtype == torch.float32:
        ready = torch.ops.mkldnn._reorder_linear_weight(weight, a.shape[0])
        return lambda: torch.ops.mkldnn._linear_pointwise(a, ready, None, "none", [], "")
    n = weight.shape[0]
    ready = torch.ops.onednn.qlinear_prepack(weight.contiguous(), None)
    scales, zeros = torch.ones(n), torch.zeros(n, dtype=torch.int32)
    ends = (None, 1.0, 0, torch.float32, "none", [], "")
    run = torch.ops.onednn.qlinear_pointwise
    return lambda: run(a, 1.0, 128, ready, scales, zeros, *ends)
