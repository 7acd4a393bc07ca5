"""Runs beyond one forward call: `Generate`, `Stream` and `Sample`, loops around a model."""

from paredown.runs.generate import Generate
from paredown.runs.loop import Loop
from paredown.runs.sample import DDIM, Sample
from paredown.runs.stream import Stream

__all__ = ["DDIM", "Generate", "Loop", "Sample", "Stream"]
