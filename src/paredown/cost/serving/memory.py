"""Where a language model's weights and cache lie: the nearest memory that is no cache."""

from __future__ import annotations

from paredown.device.device import Device, Level
from paredown.errors import NotApplicable

SMALLEST = 1 << 30
"""Bytes per device from which on a level counts as memory: caches and scratchpads hold less."""


def main(device: Device) -> Level:
    """HBM of a GPU, RAM of a host. Raises ``NotApplicable`` for a device that has none."""
    for level in device.levels:
        if level.capacity_bytes >= SMALLEST * device.count and level.holds == "all":
            return level
    raise NotApplicable(f"{device.name} has no memory of 1 GiB: no language model is served there")


def behind(device: Device) -> tuple[Level, ...]:
    """The levels that hold weights: the main memory and all slower ones."""
    near = main(device)
    return device.levels[device.levels.index(near) :]
