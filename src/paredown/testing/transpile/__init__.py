"""Pairs of CUDA-like and C++ texts of one operator, and the scoring of what translates them.

After HPCTransCompile (Lv et al. 2025, arXiv:2506.10401), without its language models: operators are
the kernel bench's tasks and random graphs, gates are the bench's, the baseline translates by rule,
and a model plugs in as a function from text to text.
"""

from paredown.testing.transpile.graphs import Graph, grow
from paredown.testing.transpile.harness import evaluate, summary
from paredown.testing.transpile.operators import written
from paredown.testing.transpile.pairs import Pair, make_pair, read_pairs, write_pairs
from paredown.testing.transpile.subjects import Subject, subject
from paredown.testing.transpile.tune import tune

__all__ = [
    "Graph",
    "Pair",
    "Subject",
    "evaluate",
    "grow",
    "make_pair",
    "read_pairs",
    "subject",
    "summary",
    "tune",
    "write_pairs",
    "written",
]
