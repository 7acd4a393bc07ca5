"""What stays of the trials on disk: what may be proved again, and all without a proof."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from paredown.paring.keeping import FINALISTS, holds_artefact, spare
from paredown.search.loop import Outcome, Search
from paredown.search.space import Candidate

SIZE = 5000


def finished(out: Path, *, winner: int, single: int, **fields: object) -> SimpleNamespace:
    """A run of eight trials; trial ``i`` is the ``i``-th best but for two that failed."""
    outcomes = []
    for i in range(8):
        folder = out / f"trials/{i:04d}"
        (folder / "artefact/run").mkdir(parents=True)
        (folder / "artefact/run/model.bin").write_bytes(bytes(SIZE))
        (folder / "artefact/manifest.json").write_text("{}")
        (folder / "trial.json").write_text("{}")
        state = "failed" if i in (1, 6) else "done"
        outcomes.append(Outcome(i, Candidate((("backend", str(i)),)), state, {}, {}, float(i)))
    search = SimpleNamespace(outcomes=outcomes)
    search.ranked = lambda: Search.ranked(search)
    return SimpleNamespace(
        request=SimpleNamespace(out=out),
        search=search,
        winner=outcomes[winner],
        single=outcomes[single],
        **{"interrupted": False, "proof": {}, **fields},
    )


def test_finalists_and_the_single_backend_stay(tmp_path):
    run = finished(tmp_path, winner=2, single=5)
    found = spare(run)
    assert found.bytes == 4 * (SIZE + 2)
    assert found.notes() == ["artefacts of other trials removed: 4, 19.5 KiB of disk"]
    found.remove()
    held = {o.id for o in run.search.outcomes if holds_artefact(tmp_path, o)}
    assert held == {0, 2, 3, 5}
    assert FINALISTS == 3
    # A resumed search that finds nothing new proves the same ones, and removes nothing more.
    assert spare(run).folders == ()
    assert spare(run).notes() == []
    assert len(list(tmp_path.glob("trials/*/trial.json"))) == 8


@pytest.mark.parametrize("unfinished", [{"interrupted": True}, {"proof": None}])
def test_nothing_goes_before_a_result_is_final(tmp_path, unfinished):
    assert spare(finished(tmp_path, winner=0, single=0, **unfinished)).folders == ()


def test_an_artefact_without_its_mark_is_not_proved_again(tmp_path):
    run = finished(tmp_path, winner=0, single=0)
    (tmp_path / "trials/0003/artefact/manifest.json").unlink()
    assert not holds_artefact(tmp_path, run.search.outcomes[3])
