"""Masked sparse weights (Flash-LLM): the dense kernel's bits on the pruned weights, exact bytes."""

from __future__ import annotations

import pytest
import torch
from kernel_cases import LEVELS, TYPES, native, pack, rows
from test_sparse_products import BF16, F32, S8, U8, run, sparse_weights

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
FAST = [level for level in LEVELS if level != "scalar"]
HELD = {F32: 4, BF16: 2, S8: 1}
SHAPES = [(1, 33, 63), (2, 32, 64), (4, 17, 129), (5, 40, 128), (16, 96, 192), (17, 31, 70)]
SHAPES += [(32, 64, 256), (33, 70, 100), (64, 64, 320), (75, 20, 64)]


@pytest.mark.parametrize("dtype", [F32, BF16, U8, S8], ids=lambda d: TYPES[d])
@pytest.mark.parametrize("isa", FAST)
def test_bits_are_those_of_the_dense_kernel(isa: str, dtype: torch.dtype) -> None:
    for i, (m, n, k) in enumerate(SHAPES):
        a = rows(m, k, dtype, seed=i)
        for share in (0.0, 0.5, 0.8, 1.0):
            w = sparse_weights(n, k, dtype, share, (1, 1), seed=i)
            dense = run(isa, None, a, w, F32)
            assert torch.equal(run(isa, "masked", a, w, F32), dense), (m, n, k, share)


@pytest.mark.parametrize("dtype", [F32, BF16, S8], ids=lambda d: TYPES[d])
@pytest.mark.parametrize("isa", FAST)
def test_bytes_are_values_masks_and_a_place_for_each_panel(isa: str, dtype: torch.dtype) -> None:
    n, k = 128, 512
    panel = 16 if isa == "avx2" else 32
    for share in (0.0, 0.7, 1.0):
        w = sparse_weights(n, k, dtype, share, (1, 1), seed=4)
        left = int((w.to(BF16) != 0).sum()) if dtype is BF16 else int((w != 0).sum())
        size = pack(isa, "sparse_masked", w, {"type": dtype, "out": n, "in": k}).numel()
        counted = left * HELD[dtype] + n * k // 8 + n // panel * 8 + (n * 4 if dtype is S8 else 0)
        assert 0 <= size - counted <= 64 + 3 * 64 + 64  # the head, places at multiples of 64, slack


@pytest.mark.parametrize("isa", FAST)
def test_weights_at_the_end_of_their_memory_are_read_within_it(isa: str) -> None:
    # The last value stands as near to the end as packing lets it; what follows is 255 (a NaN).
    for k in (1, 15, 16, 17, 64):
        w = torch.zeros(16, k)
        w[15, k - 1] = 2.0
        got = run(isa, "masked", torch.ones(3, k), w, F32)
        assert torch.equal(got[:, 15], torch.full((3,), 2.0))
        assert not got[:, :15].any()
