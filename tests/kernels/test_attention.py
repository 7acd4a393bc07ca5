"""Attention of every instruction set against the scalar reference, and that against torch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as nnf
from kernel_cases import call, native, rows
from test_products import FAST, close

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
CASES = [  # batch, heads, kv heads, queries, keys, dim, mask, causal
    (1, 1, 1, 1, 1, 1, False, False),
    (1, 3, 3, 17, 17, 33, False, False),
    (2, 4, 2, 31, 33, 64, True, False),
    (1, 2, 2, 197, 197, 64, False, False),
    (1, 2, 1, 130, 130, 32, False, True),
    (1, 1, 1, 5, 700, 40, True, True),
    (1, 2, 2, 1, 1100, 64, False, False),
    (1, 1, 1, 49, 49, 96, True, False),
    (1, 4, 2, 300, 270, 40, False, False),
    (2, 2, 2, 260, 600, 32, True, True),
    (2, 3, 3, 49, 49, 32, True, False),  # windows: few keys, two blocks of queries
    (1, 2, 1, 64, 64, 32, False, False),
    (1, 2, 2, 16, 31, 96, True, False),
    (1, 4, 4, 48, 33, 64, True, True),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("isa", FAST)
@pytest.mark.parametrize("case", range(len(CASES)))
def test_attention(isa: str, dtype: torch.dtype, case: int) -> None:
    batch, heads, kv_heads, queries, keys, dim, masked, causal = CASES[case]
    q = rows(batch * queries, heads * dim, dtype, seed=1)
    k, v = (rows(batch * keys, kv_heads * dim, dtype, seed=s) for s in (2, 3))
    given: dict[str, Any] = {
        "q": q,
        "k": k,
        "v": v,
        "type": dtype,
        "batch": batch,
        "heads": heads,
        "kv_heads": kv_heads,
        "q_len": queries,
        "kv_len": keys,
        "dim": dim,
        "scale": dim**-0.5,
        "causal": causal,
    }
    for name, t, length in (("q", q, queries), ("k", k, keys), ("v", v, keys)):
        given |= {
            f"{name}_batch": length * t.stride(0),
            f"{name}_head": dim,
            f"{name}_row": t.stride(0),
        }
    mask = torch.zeros(batch, queries, keys)
    if masked:
        generator = torch.Generator().manual_seed(5)
        mask = torch.randn(batch, queries, keys, generator=generator)
        mask[torch.rand(mask.shape, generator=generator) < 0.3] = -torch.inf
        mask[:, -1] = -torch.inf  # a query that sees nothing gives zeros
        given |= {"mask": mask, "mask_batch": queries * keys, "mask_row": keys}
    results = []
    for level in ("scalar", isa):
        out = rows(batch * queries, heads * dim, dtype, seed=0)
        out.fill_(float("nan"))
        stride = {"out_batch": queries * out.stride(0), "out_head": dim, "out_row": out.stride(0)}
        call(level, "attention", {**given, "out": out, **stride}, 3)
        results.append(out)
    close(results[1], results[0])
    if causal:
        mask = mask + torch.full((queries, keys), -torch.inf).triu(1 + keys - queries)
    split = [
        t.reshape(batch, -1, h, dim).transpose(1, 2).double()
        for t, h in ((q, heads), (k, kv_heads), (v, kv_heads))
    ]
    exact = nnf.scaled_dot_product_attention(
        *split, attn_mask=mask[:, None].double(), enable_gqa=True
    )
    exact = exact.transpose(1, 2).reshape(batch * queries, -1).nan_to_num()
    tolerance = 1e-5 if dtype is torch.float32 else 1e-2
    torch.testing.assert_close(results[0].double(), exact, rtol=tolerance, atol=tolerance)
