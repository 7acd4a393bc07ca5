"""A program of blocks and threads as CUDA-like text, and the subset of CUDA that it is.

Kernels (``__global__``, ``__shared__``, ``__syncthreads``, built-in indices) and one function that
launches them in order. :mod:`parser` reads it back, to an equal program.
"""

from __future__ import annotations

from math import prod

from paredown.kernels.loops.stmt import Allocate, For, Program
from paredown.kernels.loops.text import Printer, parameters


def print_cuda(program: Program) -> str:
    """The text; raises ``InputError`` for a kernel that is not of threads."""
    lines: list[str] = []
    launches: list[str] = []
    for k in program.kernels:
        grid, block = k.sizes()
        bounds = f"__launch_bounds__({prod(block)})"
        lines.append(f'extern "C" __global__ void {bounds} {k.name}({parameters(k)}) {{')
        lines += [*_Cuda().lines(k.body), "}", ""]
        sizes = [f"dim3({', '.join(map(str, n))})" for n in (grid, block)]
        given = ", ".join(p.name for p in k.parameters)
        launches.append(f"  {k.name}<<<{', '.join(sizes)}>>>({given});")
    whole = ", ".join(f"{'const ' * p.const}{p.dtype}* {p.name}" for p in program.parameters)
    return "\n".join([*lines, f"void {program.name}({whole}) {{", *launches, "}", ""])


class _Cuda(Printer):
    def before(self, s: For) -> list[str]:
        """A pragma, or nothing."""
        return ["#pragma unroll"] if s.kind == "unroll" else []

    def array(self, s: Allocate) -> str:
        """Shared arrays say so."""
        return ("__shared__ " if s.scope == "shared" else "") + super().array(s)

    def barrier(self) -> str:
        """Of the block."""
        return "__syncthreads();"
