"""What stays on disk once a result is final: the artefacts that a later `--resume` may still prove.

The best few and the best single backend stay whole; of every other trial `trial.json` and its row
in the store. With the same budget nothing else can be among the best again: what a resumed search
adds only pushes others down.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from paredown import manifest
from paredown.paring.measuring import trial_folder
from paredown.report import units

if TYPE_CHECKING:
    from paredown.paring.run import Run
    from paredown.search.loop import Outcome

FINALISTS = 3
"""Trials that may be proved, the best first."""


def holds_artefact(out: Path, outcome: Outcome) -> bool:
    """Whether a trial's artefact is still there, whole."""
    return (trial_folder(out, outcome.id) / "artefact" / manifest.NAME).exists()


@dataclass(frozen=True)
class Spare:
    """Artefacts that are not needed any more, and their bytes on disk."""

    folders: tuple[Path, ...] = ()
    bytes: int = 0

    def notes(self) -> list[str]:
        """For the report: how many, and the disk space saved."""
        if not self.folders:
            return []
        saved = units.quantity(self.bytes, "B")
        return [f"artefacts of other trials removed: {len(self.folders)}, {saved} of disk"]

    def remove(self) -> None:
        """Remove them; one cut off half-way is not taken for a whole one."""
        for folder in self.folders:
            (folder / manifest.NAME).unlink(missing_ok=True)
            shutil.rmtree(folder)


def spare(run: Run) -> Spare:
    """What may go once this run's result is written; nothing of an interrupted or unproved one."""
    if run.interrupted or run.proof is None:
        return Spare()
    out = run.request.out
    needed = {o.id for o in run.search.ranked()[:FINALISTS]}
    needed |= {o.id for o in (run.winner, run.single) if o is not None}
    kept = {trial_folder(out, id) / "artefact" for id in needed}
    found = sorted(p for p in (out / "trials").glob("*/artefact") if p not in kept)
    files = (f for p in found for f in p.rglob("*") if f.is_file())
    return Spare(tuple(found), sum(f.stat().st_size for f in files))
