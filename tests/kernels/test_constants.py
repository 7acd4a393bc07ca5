"""An engine's constants lie side by side in few blocks and keep their values."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from kernel_cases import native

pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
# Elements: together more than the first block, one more than the next, some in the same one.
SIZES = (1, 17, 9_000, 3, 8_000, 700_000, 63, 0, 30_000)


def test_constants_of_all_sizes_keep_their_values() -> None:
    values = [torch.randn(n, generator=torch.Generator().manual_seed(n)) for n in SIZES]
    assert native is not None
    engine: Any = native.Engine("scalar", 1, 0, [], [v.nbytes for v in values])
    places = [engine.constant(v.numpy()) for v in values]
    assert engine.weight_bytes == sum(v.nbytes for v in values)
    steps = [(i, v) for i, v in enumerate(values) if len(v)]
    for i, v in steps:
        fields = {"a": ("constant", places[i], 0), "out": ("output", i, 0)}
        engine.add("eltwise", fields | {"rows": 1, "cols": len(v)})
    engine.finish()
    outs = [torch.full_like(v, float("nan")) for v in values]
    engine.run([], [o.numpy() for o in outs], 0, engine.steps)
    for got, wanted in zip(outs, values, strict=True):
        assert torch.equal(got, wanted)


def test_engines_do_not_share_constants() -> None:
    assert native is not None
    held: list[Any] = []
    for value in (1.0, 2.0):
        engine: Any = native.Engine("scalar", 1, 0, [], [40])
        place = engine.constant(torch.full((10,), value).numpy())
        engine.add(
            "eltwise", {"a": ("constant", place, 0), "out": ("output", 0, 0), "rows": 1, "cols": 10}
        )
        engine.finish()
        held.append(engine)
    for engine, value in zip(held, (1.0, 2.0), strict=True):
        out = torch.zeros(10)
        engine.run([], [out.numpy()], 0, 1)
        assert (out == value).all()
