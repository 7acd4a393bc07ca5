"""Blocks and threads: text reads back equal, barriers mean what they mean, fission keeps them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from crafted_kernels import CRAFTED, REVERSED, TREE

from paredown.errors import InputError
from paredown.kernels.loops import library
from paredown.kernels.loops.compiled import Library
from paredown.kernels.loops.compute import Builder, Operator, evaluate
from paredown.kernels.loops.cpp import print_cpp
from paredown.kernels.loops.cuda import print_cuda
from paredown.kernels.loops.emulator import emulate
from paredown.kernels.loops.fission import transpile
from paredown.kernels.loops.lower import for_threads
from paredown.kernels.loops.parser import parse
from paredown.kernels.loops.races import EmulationError
from paredown.kernels.loops.schedule import Schedule

BARRIER = re.compile(r"__syncthreads\(\);")


def inputs(sizes: list[int]) -> list[Any]:
    rng = np.random.default_rng(1)
    x = rng.integers(-9, 10, sizes[0]).astype(np.float32)
    return [x, *(np.full(n, np.nan, np.float32) for n in sizes[1:])]


def emulated(text: str, sizes: list[int]) -> Any:
    program = parse(text)
    given = inputs(sizes)
    emulate(program, {p.name: a for p, a in zip(program.parameters, given, strict=True)})
    return given[1]


def test_barriers_keep_their_meaning_when_threads_become_loops() -> None:
    found = Library(
        [
            transpile(text).replace("run(", f"run_{n}(")
            for n, (text, _, _) in enumerate(CRAFTED.values())
        ],
        ["-O1"],
    )
    for n, (name, (text, sizes, truth)) in enumerate(CRAFTED.items()):
        wanted = truth(inputs(sizes)[0])
        np.testing.assert_array_equal(emulated(text, sizes), wanted, name)
        given = inputs(sizes)
        found.function(f"run_{n}", len(sizes))(*(a.ctypes.data for a in given))
        np.testing.assert_array_equal(given[1], wanted, name)


def test_without_any_one_of_its_barriers_a_kernel_is_refused_or_wrong() -> None:
    missing = 0
    for text, sizes, _ in CRAFTED.values():
        for barrier in BARRIER.finditer(text):
            broken = text[: barrier.start()] + text[barrier.end() :]
            with pytest.raises(EmulationError, match="no barrier in between"):
                emulated(broken, sizes)
            missing += 1
    assert missing == 9
    # The rule without fission would be wrong: one thread after the other reads what is not there.
    broken = BARRIER.sub("", REVERSED)
    given = inputs([192, 192])
    Library([transpile(broken)]).function("run", 2)(*(a.ctypes.data for a in given))
    assert not np.array_equal(given[1], CRAFTED["reversed"][2](given[0]))


def product() -> Operator:
    b = Builder("product")
    x, y = b.input("x", 3, 17, 33), b.input("y", 3, 33, 19)
    return b.done(library.each(b, library.gelu, library.matmul(b, x, y)))


def shared_tiles(s: Schedule) -> None:
    s.absorb("t0", "t1")
    io, jo, ii, ji = s.tile("t1", "i1", "i2", 8, 16)
    ty, i2 = s.split("t1", ii, 2)
    ko, ki = s.split("t1", "r0", 5)
    s.reorder("t1", "i0", io, jo, ty, ji, ko, ki, i2)
    for leaf, index in (("i0", "blockIdx.z"), (io, "blockIdx.y"), (jo, "blockIdx.x"),
                        (ty, "threadIdx.y"), (ji, "threadIdx.x")):  # fmt: skip
        s.bind("t1", leaf, index)
    s.unroll("t1", i2)
    s.cache("t1", "x", ko)
    s.cache("t1", "y", ko)


def convolution() -> Operator:
    b = Builder("convolution")
    x, w = b.input("x", 1, 4, 9, 11), b.input("w", 6, 4, 3, 3)
    return b.done(library.conv2d(b, x, w, stride=2, padding=1))


def halos(s: Schedule) -> None:
    s.inline("t0")  # the frame
    s.bind("t1", "i1", "blockIdx.x")
    o, i = s.split("t1", "i3", 4)
    s.bind("t1", o, "blockIdx.y")
    s.bind("t1", i, "threadIdx.x")
    s.bind("t1", "i2", "threadIdx.y")
    s.cache("t1", "x", "r0")
    s.cache("t1", "w", "r0")


def softmax() -> Operator:
    b = Builder("softmax")
    return b.done(library.softmax(b, b.input("x", 5, 63)))


def rows(s: Schedule) -> None:
    parts = [s.rfactor(stage, "r0", 16) for stage in ("t0", "t2")]
    names = (parts[0], "t0", "t1", parts[1], "t2", "t3")
    s.group(1, *names)
    for name in names:
        s.bind(name, "i0", "blockIdx.x")
    for name in ("t1", "t3"):
        s.bind(name, s.split(name, "i1", 16)[1], "threadIdx.x")
    for name in parts:
        s.bind(name, "i1", "threadIdx.x")


@pytest.mark.parametrize(
    ("make", "primitives"), [(product, shared_tiles), (convolution, halos), (softmax, rows)]
)
def test_text_emulation_and_loops_are_one_program(
    make: Callable[[], Operator], primitives: Callable[[Schedule], None]
) -> None:
    op = make()
    s = Schedule(op)
    primitives(s)
    program = for_threads(s)
    text = print_cuda(program)
    assert parse(text) == program
    assert text.count("__syncthreads") >= 2
    rng = np.random.default_rng(0)
    given = [rng.normal(size=t.shape).astype(np.float32) for t in op.inputs]
    (wanted,) = evaluate(op, given)

    def run(call: Callable[[list[Any]], None]) -> None:
        tensors = s.op.tensors()
        whole = [a.reshape(-1) for a in given]
        whole += [
            np.full(tensors[p.name].size, np.nan, np.float32)
            for p in program.parameters[len(given) :]
        ]
        call(whole)
        np.testing.assert_allclose(whole[len(given)], wanted.reshape(-1), 2e-5, 2e-5)

    names = [p.name for p in program.parameters]
    run(lambda whole: emulate(program, dict(zip(names, whole, strict=True))))
    function = Library([transpile(text)], ["-O1"]).function("run", len(names))
    run(lambda whole: function(*(a.ctypes.data for a in whole)))
    with pytest.raises(EmulationError, match="no barrier"):
        run(
            lambda whole: emulate(
                parse(BARRIER.sub("", text)), dict(zip(names, whole, strict=True))
            )
        )
    with pytest.raises(InputError, match="transpile it first"):
        print_cpp(program)


def kernel(body: str, before: str = "") -> str:
    return (
        f"__global__ void k(const float* x, float* y) {{ {before} int t = threadIdx.x; {body} }}\n"
        "void run(const float* x, float* y) { k<<<2, 8>>>(x, y); }"
    )


def test_what_a_device_leaves_undefined_is_refused() -> None:
    for body, why in (
        ("y[t] = 1.0f;", "a block writes what another touches"),
        ("y[blockIdx.x * 8 + t + 1] = x[t];", r"y\[16\] is outside its 16 elements"),
        ("y[blockIdx.x] = 1.0f;", "a thread writes what another touches"),
        ("if (t < 4) __syncthreads();", "only some threads"),
        ("for (int i = 0; i < t; ++i) __syncthreads();", "only some threads"),
        ("float v = y[blockIdx.x * 8]; y[blockIdx.x * 8 + t] = v;", "no barrier in between"),
    ):
        with pytest.raises(EmulationError, match=why):
            emulated(kernel(body), [16, 16])
    # Not read where the other side is taken: nothing is out of bounds.
    safe = kernel("y[blockIdx.x * 8 + t] = (t > 90 ? x[t + 90] : 1.0f);")
    np.testing.assert_array_equal(emulated(safe, [16, 16]), np.ones(16))
    poison = emulated(kernel("float s[2]; y[blockIdx.x * 8 + t] = s[1];"), [16, 16])
    assert np.isnan(poison).all()


def test_what_has_no_rule_is_refused_with_its_line() -> None:
    for body, why in (
        ("if (t < 4) __syncthreads();", "may differ from thread to thread: tx"),
        ("for (int i = 0; i < t; ++i) { __syncthreads(); }", "may differ"),
        ("int n = 1; n = n + t; for (int i = 0; i < n; ++i) { __syncthreads(); }", "may differ: n|n$"),
        ("if (x[0] > 0.0f) { __syncthreads(); }", "it reads memory"),
        ("atomicAdd(y, 1.0f);", "line 1: 'atomicAdd' is not declared"),
        ("y[t] = __shfl_down_sync(0, x[t], 1);", "no function '__shfl_down_sync'"),
        ("while (t < 3) { }", "'while' is not declared"),
        ("float* p = y;", r"'\*' where a name"),
        ("int t = 3;", "hides another"),
        ("x[0] = 1.0f;", "writes to x, which is const"),
        ("int i = 1.5f;", "a float where an int"),
        ("for (int i = 0; i < 3; ++i) { i = 2; }", "changed inside its loop"),
        ("for (int i = 0; i < 3; ++i) { return; }", "return inside"),
        ("y[t] = warpSize;", "'warpSize' is not declared"),
        ("y[t] = blockDim.x;", "no built-in blockDim.x"),
        ("y[t] = x[t] ^ 1;", "not understood"),
        ("#define A 1\n", "not understood"),
        ("{", "'void' is not declared"),
    ):  # fmt: skip
        with pytest.raises(InputError, match=why):
            transpile(kernel(body))
    for text, why in (
        (REVERSED.replace("reversed<<<", "other<<<"), "no kernel 'other'"),
        (REVERSED.replace(">>>(x, y)", ">>>(x)"), "other buffers than it takes"),
        (REVERSED.replace(">>>(x, y)", ">>>(y, y)"), "one buffer twice"),
        (TREE + "int more;", "after the function"),
    ):
        with pytest.raises(InputError, match=why):
            parse(text)
    s = Schedule(product())
    s.parallel("t0", "i0")
    with pytest.raises(InputError, match="for the CPU"):
        for_threads(s)
    s = Schedule(softmax())
    s.group(1, "t0", "t1", "t2", "t3")
    with pytest.raises(InputError, match="bound to blocks"):
        for_threads(s)
