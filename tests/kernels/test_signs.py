"""Products of signs on every level: exact sums, by popcount and along plans, in any split; NaN-filled places."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from paredown import kernels
from paredown.runtime import binary, binary_plan
from paredown.runtime import binary_tree as trees

native: Any = kernels.native()
pytestmark = pytest.mark.skipif(native is None, reason="no native kernels")
LEVELS = native.levels() if native is not None else []
SHAPES = [
    (1, 1, 1),
    (3, 2, 3),
    (5, 9, 64),
    (65, 17, 63),
    (513, 40, 130),
    (260, 7, 576),
    (66, 5, 4200),
]


def case(rows: int, channels: int, n: int) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
    """Inputs, channels near one vector, and the exact sums."""
    g = np.random.default_rng(rows)
    w = g.choice([-1, 1], n) * np.where(g.random((channels, n)) < 0.2, -1, 1)
    x = g.choice([-1, 1], (rows, n))
    return x, w, torch.from_numpy((x @ w.T).astype(np.int32))


def packed(x: np.ndarray, isa: str) -> torch.Tensor:
    out = torch.full((len(x), -(-x.shape[1] // 64)), -1, dtype=torch.int64)
    native.signs_pack(torch.from_numpy(x).float(), torch.zeros(x.shape[1]), out, isa)
    return out


def place(*shape: int, floats: bool) -> torch.Tensor:
    return (
        torch.full(shape, float("nan"))
        if floats
        else torch.full(shape, -(2**31), dtype=torch.int32)
    )


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("isa", LEVELS)
def test_every_way_gives_the_exact_sums(
    isa: str, shape: tuple[int, int, int], threads: int
) -> None:
    rows, channels, n = shape
    x, w, wanted = case(*shape)
    a, b = packed(x, isa), packed(w, isa)
    gain, offset = torch.rand(channels), torch.randn(channels)
    for scale in (None, (gain, offset)):
        want = wanted if scale is None else wanted * gain + offset
        given = (None, None) if scale is None else scale
        out = place(rows, channels, floats=scale is not None)
        native.signs_product(a, b, n, out, *given, isa, threads)
        assert torch.equal(out, want)
        for tree in (trees.spanning_tree(w), None):
            p = binary_plan.plan(w, tree)
            checked = native.SignsPlan(p.steps, p.lists, p.words, n)
            for gathers in (False, True):
                out = place(channels, rows, floats=scale is not None)
                native.signs_along(checked, a, out, *given, isa, gathers, threads)
                assert torch.equal(out.T, want), (tree is None, gathers)


@pytest.mark.parametrize("isa", LEVELS)
def test_packing_compares_each_column_and_a_nan_is_plus(isa: str) -> None:
    for n in (1, 15, 16, 17, 64, 65, 130):
        x, at = torch.randn(4, n), torch.randn(n)
        x[0, 0], x[1, -1], x[2, 0] = at[0], float("nan"), -float("inf")
        out = torch.full((4, -(-n // 64)), -1, dtype=torch.int64)
        native.signs_pack(x, at, out, isa)
        assert torch.equal(out, binary.as_words(binary.packed_bits(x < at)))


def test_what_does_not_fit_is_refused_before_it_runs() -> None:
    x, w, _ = case(5, 4, 70)
    a, b = packed(x, "scalar"), packed(w, "scalar")
    out = place(5, 4, floats=False)
    product = native.signs_product
    for wrong in (
        lambda: product(a, b[:, :1].contiguous(), 70, out, None, None, "scalar", 1),
        lambda: product(a, b, 129, out, None, None, "scalar", 1),
        lambda: product(a, b, 70, out.T.contiguous(), None, None, "scalar", 1),
        lambda: product(a, b, 70, out, torch.ones(4), None, "scalar", 1),
        lambda: product(a, b, 70, out.float(), torch.ones(3), torch.ones(3), "scalar", 1),
        lambda: product(a, b, 70, out.float(), None, None, "scalar", 1),
        lambda: product(a, b, 70, out, None, None, "scalar", 0),
        lambda: product(a, b, 70, out, None, None, "sse9", 1),
        lambda: native.signs_pack(
            torch.ones(2, 5), torch.ones(4), a[:2, :1].contiguous(), "scalar"
        ),
    ):
        with pytest.raises(ValueError, match=r"[a-z]"):
            wrong()
    p = binary_plan.plan(w, trees.spanning_tree(w))

    def spoilt(step: int, field: int, value: int) -> np.ndarray:
        steps = p.steps.copy()
        steps[step, field] = value
        return steps

    last = len(p.steps) - 1
    damaged = [
        spoilt(0, 0, 4),
        spoilt(last, 0, int(p.steps[0, 0])),
        spoilt(0, 1, int(p.steps[last, 0])),
    ]
    damaged += [spoilt(1, 2, 3), spoilt(1, 4, p.lists.size), spoilt(1, 4, -8), spoilt(1, 6, -1)]
    for steps in (*damaged, p.steps[:, :6].copy()):
        with pytest.raises(ValueError, match=r"[a-z]"):
            native.SignsPlan(steps, p.lists, p.words, 70)
    lists = p.lists.copy()
    lists[0] = p.words * 64 + 2
    with pytest.raises(ValueError, match="names inputs"):
        native.SignsPlan(p.steps, lists, p.words, 70)
    checked = native.SignsPlan(p.steps, p.lists, p.words, 70)
    with pytest.raises(ValueError, match="words that the plan"):
        native.signs_along(checked, a[:, :1].contiguous(), out, None, None, "scalar", False, 1)


@pytest.mark.parametrize("isa", LEVELS)
def test_the_operators_take_the_level_asked_for(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAREDOWN_ISA", isa)
    x, w, wanted = case(70, 33, 200)
    at = torch.zeros(200)
    a = binary.pack_signs(torch.from_numpy(x).float(), at)
    b = binary.pack_signs(torch.from_numpy(w).float(), at)
    assert torch.equal(binary.binary_product(a, b, 200), wanted)
    plan = binary_plan.plan(w, trees.spanning_tree(w))
    for gathers in (False, True):
        assert torch.equal(binary.Along(plan, gathers=gathers)(a).T, wanted)
    monkeypatch.setattr(kernels, "native", lambda: None)
    assert torch.equal(binary.pack_signs(torch.from_numpy(x).float(), at), a)
    assert torch.equal(binary.binary_product(a, b, 200), wanted)
    assert torch.equal(binary.Along(plan)(a).T, wanted)
    gain, offset = torch.rand(33), torch.randn(33)
    assert torch.equal(binary.binary_layer(a, b, 200, gain, offset), wanted * gain + offset)
