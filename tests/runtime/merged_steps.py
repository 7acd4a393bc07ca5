"""What merged steps of a native plan say of the sites they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from paredown import runtime
from paredown.workload import Workload


def ran_by_site(
    executable: Any, given: Workload, folder: Path, sites: tuple[str, ...]
) -> list[dict[str, str]]:
    """The operator that each site ran as, of the executable and of what it loads as from disk.

    Asserts that both give the same bits, and that each site ran once with weights of float32.
    """
    executable.save(folder)
    loaded = runtime.backend("native").load(folder, threads=2)
    assert torch.equal(loaded(*given.inputs), executable(*given.inputs))
    told: list[dict[str, str]] = []
    for one in (executable, loaded):
        rows = one.executed()
        found: dict[str, str] = {}
        for site in sites:
            (found[site],) = [r.op for r in rows if r.site == site and r.role]
            assert [r.precision for r in rows if (r.site, r.op) == (site, "weight")] == ["float32"]
        told.append(found)
    return told
