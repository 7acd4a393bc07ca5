"""Loop nests: operators, schedules, C++ and CUDA-like text, an emulator, a transpiler. No torch.

An operator (``compute``) is scheduled (``schedule``) and lowered (``lower``) to a program
(``stmt``), which is printed (``cpp``, ``cuda``), read back (``parser``), emulated (``emulator``),
translated from threads to loops (``fission``) or compiled and called (``compiled``).
"""

from paredown.kernels.loops.compiled import Library
from paredown.kernels.loops.compute import Builder, Operator, evaluate
from paredown.kernels.loops.cpp import print_cpp
from paredown.kernels.loops.cuda import print_cuda
from paredown.kernels.loops.emulator import emulate
from paredown.kernels.loops.fission import transpile
from paredown.kernels.loops.lower import for_cpu, for_threads
from paredown.kernels.loops.parser import parse
from paredown.kernels.loops.schedule import Schedule

__all__ = [
    "Builder",
    "Library",
    "Operator",
    "Schedule",
    "emulate",
    "evaluate",
    "for_cpu",
    "for_threads",
    "parse",
    "print_cpp",
    "print_cuda",
    "transpile",
]
