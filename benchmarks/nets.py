"""Targets of the benchmark: `benchmarks/nets.py:vit`, `:mobilenetv2`, `:vovnet`, `:convnext`."""

from __future__ import annotations

from pathlib import Path

from paredown.workload import Workload
from paredown.workloads import nets

FOLDER = Path(__file__).with_name("nets")


def mobilenetv2() -> Workload:
    return nets.workload("mobilenetv2", FOLDER)


def vovnet() -> Workload:
    return nets.workload("vovnet", FOLDER)


def convnext() -> Workload:
    return nets.workload("convnext", FOLDER)


def vit() -> Workload:
    return nets.workload("vit", FOLDER)
