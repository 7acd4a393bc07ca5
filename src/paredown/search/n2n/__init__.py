"""Network-to-network compression by policy gradient: layers removed, then the rest shrunk."""

from paredown.search.n2n.compression import Compression, Found, latency, parameters, reward
from paredown.search.n2n.policies import Removal, Shrinkage
from paredown.search.n2n.stages import RemovalStage, ShrinkageStage

__all__ = [
    "Compression",
    "Found",
    "Removal",
    "RemovalStage",
    "Shrinkage",
    "ShrinkageStage",
    "latency",
    "parameters",
    "reward",
]
