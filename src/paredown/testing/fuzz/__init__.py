"""Random valid networks, grown from what recorded calls teach, to test paredown against eager.

NeuRI (Liu et al. 2023, arXiv:2302.02261). `operators()` are the learned ones, `grow` makes a
`Program`, `network` a workload of it; `oracles`, `backends` and `rewrites` look for differences,
`minimal` shrinks a program that shows one, `campaign` runs thousands. `benchmarks/fuzz.py` is the
command; `docs/fuzzing.md` tells what was found.
"""

from paredown.testing.fuzz.campaign import Campaign
from paredown.testing.fuzz.grow import grow
from paredown.testing.fuzz.minimal import minimal
from paredown.testing.fuzz.partial import PartialOperator, operators
from paredown.testing.fuzz.program import Program, network

__all__ = ["Campaign", "PartialOperator", "Program", "grow", "minimal", "network", "operators"]
