"""Machines as data: ``load`` one by name or file, ``names`` lists the catalogue, ``this`` first."""

from __future__ import annotations

from paredown.device.device import Array, Device, Level, Link
from paredown.device.files import dumps, load, loads, names

__all__ = ["Array", "Device", "Level", "Link", "dumps", "load", "loads", "names"]
