"""A program as C++: OpenMP for parallel loops, vector and unrolling pragmas, no headers.

The text stands alone and is portable: any C++17 compiler takes it, and one that knows no OpenMP
runs it serially. ``extern "C" void run(...)`` takes the program's buffers in order.
"""

from __future__ import annotations

from paredown.errors import InputError
from paredown.kernels.loops.expr import Binary, Call
from paredown.kernels.loops.stmt import (
    Assign,
    Declare,
    For,
    Kernel,
    Program,
    all_expressions,
    statements,
)
from paredown.kernels.loops.text import Printer, function, parameters

HELPERS = {
    "max": "static inline float max(float a, float b) { return a > b ? a : b; }",
    "min": "static inline float min(float a, float b) { return a < b ? a : b; }",
}


def print_cpp(program: Program) -> str:
    """The text; raises ``InputError`` for kernels of threads (see ``transpile``)."""
    used = [e for k in program.kernels for e in all_expressions(k.body)]
    calls = sorted({function(e.name) for e in used if isinstance(e, Call) and e.name != "float"})
    lines = [f'extern "C" float {name}(float) noexcept;' for name in calls]
    operators = {e.op for e in used if isinstance(e, Binary)}
    lines += [text for name, text in HELPERS.items() if name in operators]
    for kernel in program.kernels:
        if kernel.grid is not None:
            raise InputError(f"{kernel.name} is a kernel of threads: transpile it first")
        lines += ["", f"static void {kernel.name}({parameters(kernel)}) {{"]
        lines += [*_Cpp().lines(kernel.body), "}"]
    whole = Kernel(program.name, program.parameters, ())
    lines += ["", f'extern "C" void {program.name}({parameters(whole)}) {{']
    lines += [f"  {k.name}({', '.join(p.name for p in k.parameters)});" for k in program.kernels]
    return "\n".join([*lines, "}", ""]).lstrip("\n")


class _Cpp(Printer):
    def before(self, s: For) -> list[str]:
        """Pragmas."""
        match s.kind:
            case "parallel":
                return ["#pragma omp parallel for"]
            case "unroll":
                return [f"#pragma GCC unroll {s.extent or 8}"]
            case "vectorize":
                return ["#pragma omp simd" + "".join(_reductions(s))]
            case _:
                return []

    def barrier(self) -> str:
        """None outside kernels of threads."""
        raise InputError("a barrier outside a kernel of threads: transpile it first")


def _reductions(s: For) -> list[str]:
    """The clause for every scalar from outside that the loop accumulates in."""
    own = {x.name for x in statements(s.body) if isinstance(x, Declare)}
    found: dict[str, str] = {}
    for x in statements(s.body):
        if isinstance(x, Assign) and x.name not in own:
            if not isinstance(x.value, Binary):
                raise InputError(f"{x.name} is no reduction: loop {s.name} cannot be vectorized")
            found[x.name] = x.value.op
    return [f" reduction({op}:{name})" for name, op in found.items()]
