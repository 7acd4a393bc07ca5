"""Plans for one scratchpad (COSMA): order, places and replacement with the least traffic."""

from __future__ import annotations

from paredown.cost.scratchpad import baselines, divide, ilp
from paredown.cost.scratchpad.problem import Plan, Stay, Step, Task, replay, task_of

__all__ = ["Plan", "Stay", "Step", "Task", "baselines", "divide", "ilp", "replay", "task_of"]
