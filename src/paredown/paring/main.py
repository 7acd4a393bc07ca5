"""`down`: make a network fit a measured budget; and its result, callable like the model."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import nn

from paredown.paring import keeping, outcome, request
from paredown.paring.measuring import trial_folder
from paredown.paring.run import Run, run
from paredown.report.progress import Progress, quiet
from paredown.result import DownDoc
from paredown.workload import Workload


@dataclass
class Result:
    """What `down` returns. Calling it runs the pared network as loaded from its folder."""

    doc: DownDoc
    folder: Path
    workload: Workload

    @property
    def verdict(self) -> str:
        """``met``, ``infeasible``, ``no_gain`` ... (CONTRACTS, Verdicts)."""
        return self.doc.verdict

    @cached_property
    def model(self) -> nn.Module:
        """The pared network behind the original's signature."""
        from paredown import artefact

        return artefact.load(self.folder, threads=self.doc.threads, source=self.workload).module

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the pared network like the original."""
        return self.model(*args, **kwargs)


def down(
    target: str | nn.Module | Workload,
    inputs: Any = None,
    *,
    progress: Progress | None = None,
    **options: Any,
) -> Result:
    """Pare a network down until it fits; every option of `pare down` by the same name.

    ``target`` is a reference (``file.py:name``, ``hf:FOLDER``, ``zoo:NAME``), an ``nn.Module`` with
    example ``inputs``, or a `Workload`. ``to`` holds constraints such as ``"latency <= 0.3x"``;
    see `paredown.paring.request.make` for the others. Raises `ParedownError` for anything that can
    be refused before compute is spent; an infeasible budget is a result, not an error.
    """
    asked = request.make(target, inputs, **options)
    finished = run(asked, progress or quiet())
    doc = outcome.document(finished)
    spare = keeping.spare(finished)
    doc.notes += spare.notes()
    _deliver(finished, doc)
    spare.remove()
    return Result(doc, asked.out, asked.workload)


def _deliver(finished: Run, doc: DownDoc) -> None:
    """The winner's artefact, with report and result, becomes the content of the out folder."""
    from paredown import artefact, report
    from paredown.files import write_text

    out = finished.request.out
    if finished.winner is None:
        _save_original(finished, out)
    else:
        artefact.publish(trial_folder(out, finished.winner.id) / "artefact", out)
    write_text(out / "result.json", doc.to_json())
    report.write(doc, out / "report.html")
    artefact.seal(out)
    # What trials shared is not needed any more; store, figures and finalists stay for --resume.
    shutil.rmtree(out / "shared", ignore_errors=True)


def _save_original(finished: Run, out: Path) -> None:
    """The original in its own backend stands in the folder when nothing better was found."""
    from paredown import artefact, runtime

    asked = finished.request
    backend = runtime.backend(asked.own_backend)
    executable = backend.lower(asked.workload, threads=asked.threads)
    artefact.save(
        out,
        workload=asked.workload,
        executable=executable,
        recipe=outcome.recipe(finished, None),
        fingerprint=finished.fingerprint,
    )
