"""A bench of operator tasks for kernels: ours, compiled ones, and whatever a user plugs in.

After MultiKernelBench (Wen et al. 2025, arXiv:2507.17773): tasks by category, one interface for
every backend, correctness before speed, and code that only calls the framework found out.
"""

from paredown.testing.bench.backends import BACKENDS, Kernel, KernelBackend, register
from paredown.testing.bench.judge import Verdict, judge, summary
from paredown.testing.bench.task import CATEGORIES, TASKS, Task, tasks

__all__ = [
    "BACKENDS",
    "CATEGORIES",
    "TASKS",
    "Kernel",
    "KernelBackend",
    "Task",
    "Verdict",
    "judge",
    "register",
    "summary",
    "tasks",
]
