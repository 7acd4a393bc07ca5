"""Loop nests: every schedule computes what the operator says, in C++ and at odd sizes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from paredown.errors import InputError, LoweringError
from paredown.kernels.loops import compiled, library
from paredown.kernels.loops.compiled import Library
from paredown.kernels.loops.compute import Builder, Operator, evaluate
from paredown.kernels.loops.cpp import print_cpp
from paredown.kernels.loops.expr import Const, Var, affine, binary, call
from paredown.kernels.loops.lower import for_cpu
from paredown.kernels.loops.schedule import Schedule


def product(m: int = 17, k: int = 33, n: int = 19) -> Operator:
    b = Builder("product")
    x, y = b.input("x", m, k), b.input("y", k, n)
    return b.done(library.each(b, lambda e: e * 2.0, library.matmul(b, x, y)))


def softmax(rows: int = 7, columns: int = 63) -> Operator:
    b = Builder("softmax")
    return b.done(library.softmax(b, b.input("x", rows, columns)))


def convolution() -> Operator:
    b = Builder("convolution")
    x, w = b.input("x", 2, 4, 9, 7), b.input("w", 6, 2, 3, 3)
    return b.done(library.conv2d(b, x, w, stride=2, padding=1, groups=2))


def arrays(op: Operator) -> list[Any]:
    rng = np.random.default_rng(0)
    return [rng.normal(size=t.shape).astype(np.float32) for t in op.inputs]


def plain(_: Schedule) -> None:
    """No primitive at all."""


def tiled(s: Schedule) -> None:
    s.absorb("t0", "t1")
    a, b, c, d = s.tile("t1", "i0", "i1", 4, 8)
    ko, ki = s.split("t1", "r0", 5)
    s.reorder("t1", a, b, ko, ki, c, d)
    s.unroll("t1", c)
    s.vectorize("t1", d)
    s.parallel("t1", a)


def along(s: Schedule) -> None:
    s.vectorize("t0", "r0")
    s.vectorize("t1", s.fuse("t1", "i0", "i1"))


def factored(s: Schedule) -> None:
    part = s.rfactor("t0", "r0", 4)
    s.split(part, "r0", 2)
    s.split("t1", "i0", 16)


def grouped(s: Schedule) -> None:
    for stage in ("t0", "t2"):
        s.vectorize(stage, "r0")
    s.group(1, "t0", "t1", "t2", "t3")
    for stage in ("t0", "t1", "t2", "t3"):
        s.parallel(stage, "i0")


def split_rows(s: Schedule) -> None:
    for stage in ("t0", "t1", "t2", "t3"):
        s.split(stage, "i0", 2)
    s.group(2, "t0", "t1", "t2", "t3")


def strips(s: Schedule) -> None:
    s.inline("t0")  # the frame
    o, i = s.split("t1", "i3", 3)
    s.reorder("t1", "i0", "i1", "i2", o, "r0", "r1", "r2", i)
    s.unroll("t1", "r2")
    s.vectorize("t1", i)


CASES: list[tuple[Callable[[], Operator], Callable[[Schedule], None]]] = [
    *[(product, f) for f in (plain, tiled, along, factored)],
    *[(softmax, f) for f in (plain, grouped, split_rows)],
    *[(convolution, f) for f in (plain, strips)],
]


def test_every_schedule_computes_the_operator() -> None:
    programs = []
    for n, (make, primitives) in enumerate(CASES):
        s = Schedule(make())
        primitives(s)
        programs.append(for_cpu(s, f"run_{n}"))
        again = Schedule.replay(make(), [tuple(step) for step in s.steps])
        assert for_cpu(again, f"run_{n}") == programs[-1]
    texts = [print_cpp(p) for p in programs]
    # Compilers without OpenMP ignore its pragmas: the same results, serially.
    for extra, count in (("-O1", len(CASES)), ("-fno-openmp", 3)):
        found = Library(texts[:count], ["-O1", extra])
        found.threads(2)
        for program, (make, primitives) in zip(programs[:count], CASES, strict=False):
            op = make()
            given = arrays(op)
            wanted = evaluate(op, given)[0]
            s = Schedule(make())
            primitives(s)
            shapes = {name: t.shape for name, t in s.op.tensors().items()}
            whole = [
                *given,
                *(
                    np.full(shapes[p.name], np.nan, np.float32)
                    for p in program.parameters[len(given) :]
                ),
            ]
            found.function(program.name, len(whole))(*(a.ctypes.data for a in whole))
            np.testing.assert_allclose(
                whole[len(given)], wanted, 2e-5, 2e-5, err_msg=str(primitives)
            )


def test_operators_are_torch_s() -> None:
    x, y = arrays(product())
    (got,) = evaluate(product(), [x, y])
    np.testing.assert_allclose(got, 2 * x @ y, 1e-5, 1e-5)
    (x,) = arrays(softmax())
    np.testing.assert_allclose(
        evaluate(softmax(), [x])[0], torch.from_numpy(x).softmax(-1), 1e-5, 1e-6
    )
    x, w = (torch.from_numpy(a) for a in arrays(convolution()))
    (got,) = evaluate(convolution(), [x, w])
    np.testing.assert_allclose(got, F.conv2d(x, w, None, 2, 1, 1, 2), 1e-5, 1e-5)


def test_what_a_schedule_must_not_do_is_refused() -> None:
    def refused(make: Callable[[], Operator], change: Callable[[Schedule], Any]) -> str:
        def lowered() -> None:
            s = Schedule(make())
            change(s)
            for_cpu(s)

        with pytest.raises(InputError) as e:
            lowered()
        return str(e.value)

    assert "innermost" in refused(product, lambda s: s.vectorize("t0", "i0"))
    assert "reduced" in refused(product, lambda s: s.parallel("t0", "r0"))
    assert "reduced" in refused(product, lambda s: s.bind("t0", "r0", "threadIdx.x"))
    assert "threads" in refused(product, lambda s: s.bind("t0", "i0", "blockIdx.x"))
    assert "result" in refused(product, lambda s: s.inline("t1"))
    assert "unroll" in refused(lambda: product(65), lambda s: s.unroll("t0", "i0"))
    assert "split" in refused(product, lambda s: s.split("t0", "i0", 0))
    assert "no loop" in refused(product, lambda s: s.split("t0", "i7", 2))
    assert "no stage" in refused(product, lambda s: s.split("t9", "i0", 2))
    assert "another place" in refused(transposed, lambda s: s.group(1, "t0", "t1"))
    assert "neighbours" in refused(product, lambda s: s.fuse("t0", "i1", "r0"))
    assert "not the elementwise end" in refused(softmax, lambda s: s.absorb("t0", "t1"))
    assert "tile of" in refused(
        lambda: product(100, 3, 100), lambda s: s.reorder("t0", "r0", "i0", "i1")
    )
    assert "reduces a whole tile" in refused(product, _tile_along)
    with pytest.raises(InputError, match="no primitive"):
        Schedule.replay(product(), [("__init__", product())])
    with pytest.raises(InputError, match="no function"):
        call("gamma", Var("x"))


def transposed() -> Operator:
    b = Builder("transposed")
    x = b.input("x", 4, 4)
    once = b.each((4, 4), lambda i, j: x[i, j] * 2.0)
    return b.done(b.each((4, 4), lambda i, j: once[j, i]))


def _tile_along(s: Schedule) -> None:
    s.reorder("t0", "i0", "r0", "i1")
    o, i = s.split("t0", "r0", 8)
    s.reorder("t0", "i1", o, i)
    s.reorder("t0", "i0", o, "i1", i)
    s.vectorize("t0", i)


def test_indices_fold() -> None:
    i, j = Var("i"), Var("j")
    assert (i * 1 + 0) == i
    assert (Const(7) // 2, Const(-7) // 2, Const(-7) % 2) == (Const(3), Const(-3), Const(-1))
    assert binary("+", (i // 5) * 5, i % 5) == i
    assert affine((i * 3 + j) * 2 - 1) == (-1, {"i": 6, "j": 2})
    assert affine(i * j) is None


def test_without_a_compiler_and_with_bad_text_the_error_says_what_to_do(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(LoweringError, match=r"refused the text: .*error"):
        Library(["this is no C++"])
    with pytest.raises(LoweringError, match="no extern"):
        Library(['extern "C" void run() {}']).function("other", 0)
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(LoweringError, match="no-such-compiler"):
        compiled.compiler()
    monkeypatch.delenv("CXX")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(LoweringError, match="apt-get install"):
        Library([""])
