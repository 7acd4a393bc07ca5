"""The main job. ``paredown.down`` is the function, so the package that holds it has another
name.
"""

from paredown.paring.check import check
from paredown.paring.main import Result, down
from paredown.paring.plan import plan

__all__ = ["Result", "check", "down", "plan"]
