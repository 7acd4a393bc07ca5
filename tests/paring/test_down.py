"""The main job on a tiny network: verdicts, what is delivered, resuming after a kill."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from paredown import down
from paredown.errors import BudgetError, InputError
from paredown.paring import check, keeping, plan, proving
from paredown.result import DownDoc

TINY = f"{Path(__file__).with_name('tiny.py')}:target"
QUICK = {"only": ["static-int8", "bf16"], "threads": 1, "seed": 0}


@pytest.fixture(scope="module")
def met(tmp_path_factory):
    out = tmp_path_factory.mktemp("met") / "out"
    return down(TINY, to=["size <= 0.6x", "drop <= 10%"], out=out, effort="40s", **QUICK)


def test_a_feasible_budget_is_met_and_proved_from_disk(met):
    doc = met.doc
    assert doc.verdict == "met"
    size = next(c for c in doc.constraints if c.metric == "size")
    assert size.achieved.how == "counted"
    assert size.achieved.value <= 0.6
    drop = next(c for c in doc.constraints if c.metric == "drop")
    assert drop.achieved.n == 120
    assert doc.after.ratios["latency"].how == "measured"
    assert doc.a_a_ratio is not None
    assert doc.changed


def test_the_folder_holds_what_the_document_says(met):
    assert {"manifest.json", "recipe.yaml", "report.html", "result.json"} <= {
        p.name for p in met.folder.iterdir()
    }
    again = DownDoc.model_validate_json((met.folder / "result.json").read_text())
    assert again == met.doc
    on_disk = sum(p.stat().st_size for p in (met.folder / "run").rglob("*") if p.is_file())
    assert on_disk <= met.doc.after.figures["size"].value <= 1.2 * on_disk


@pytest.mark.slow
def test_a_finished_search_resumes_from_the_artefacts_that_stayed(tmp_path, monkeypatch):
    # One finalist, so that a search of three trials has a loser.
    monkeypatch.setattr(keeping, "FINALISTS", 1)
    monkeypatch.setattr(proving, "FINALISTS", 1)

    def again(resume):
        # Enough for three trials on a loaded machine too; the second time proves what is there.
        asked = {"effort": "150s", "resume": resume, "backend": "openvino", **QUICK}
        return down(TINY, to=["size <= 0.6x", "drop <= 10%"], out=tmp_path / "out", **asked)

    first = again(False)
    done = [t.id for t in first.doc.trials if t.state == "done"]
    kept = list(first.folder.glob("trials/*/artefact/manifest.json"))
    assert len(kept) <= 2 < len(done)
    assert all((first.folder / f"trials/{id:04d}/trial.json").exists() for id in done)
    assert any(f"removed: {len(done) - len(kept)}, " in n for n in first.doc.notes)
    second = again(True)
    assert [t.id for t in second.doc.trials][: len(first.doc.trials)] == [
        t.id for t in first.doc.trials
    ]
    assert second.doc.verdict == "met"
    assert second.doc.best_single_backend is not None


def test_the_result_is_callable_like_the_model(met):
    x = torch.randn(3, 3, 32, 32)
    assert met(x).shape == (3, 5)
    torch.testing.assert_close(met(x)[1:2], met(x[1:2]), rtol=1e-4, atol=1e-4)


def test_the_callers_model_is_untouched(met):
    sys.path.insert(0, str(Path(__file__).parent))
    import tiny

    fresh = tiny.network().state_dict()
    for name, value in met.workload.model.state_dict().items():
        torch.testing.assert_close(value, fresh[name], rtol=0, atol=0)


def test_an_infeasible_budget_is_a_result_with_the_binding_constraint(tmp_path):
    r = down(
        TINY, to=["size <= 0.001x"], out=tmp_path / "o", effort="15s", backend="eager", **QUICK
    )
    assert r.doc.verdict in ("infeasible", "no_gain")
    assert r.doc.binding == "size <= 0.001x"
    assert (tmp_path / "o" / "manifest.json").exists()


def test_a_finished_search_is_not_begun_again_by_accident(met):
    with pytest.raises(InputError, match="--resume"):
        down(TINY, to=["size <= 0.6x"], out=met.folder, effort="5s", **QUICK)


def test_refusals_before_compute(tmp_path):
    with pytest.raises(BudgetError, match="contradict"):
        down(TINY, to=["latency <= 1 ms", "latency >= 2 ms"], out=tmp_path)
    with pytest.raises(InputError, match="effort"):
        down(TINY, to=["latency <= 1 ms"], effort="soon", out=tmp_path)
    with pytest.raises(InputError, match="nothing to resume"):
        down(TINY, to=["latency <= 1 ms"], resume=True, out=tmp_path / "x")


def test_plan_runs_nothing(tmp_path):
    doc = plan(TINY, to=["latency <= 0.5x"], out=tmp_path / "p", **QUICK)
    assert doc.candidates
    assert "static-int8" in doc.techniques
    assert not (tmp_path / "p" / "search.sqlite").exists()


def test_check_measures_against_absolute_limits():
    doc = check(TINY, to=["latency <= 10 s", "params <= 1k"], threads=1)
    by = {c.metric: c for c in doc.constraints}
    assert by["latency"].met
    assert not by["params"].met
    assert not doc.met


def test_kill_and_resume_repeats_and_loses_nothing(tmp_path):
    out = tmp_path / "killed"
    command = [
        sys.executable,
        "-c",
        "from paredown import down\n"
        f"if __name__ == '__main__':\n"
        f"    down({TINY!r}, to=['size <= 0.2x'], out={str(out)!r}, effort='300s', "
        f"only=['static-int8', 'bf16'], threads=1, backend='openvino')",
    ]
    finished: list[int] = []
    for moment in (1, 2, 4):
        resume = out.exists()
        text = command[-1].replace("effort=", f"resume={resume}, effort=")
        process = subprocess.Popen([*command[:-1], text], stderr=subprocess.PIPE)
        deadline = time.monotonic() + 90
        while _told(out) < moment:
            assert process.poll() is None, process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        time.sleep(0.3 * moment)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        finished.append(_told(out))
    assert finished == sorted(finished)
    r = down(
        TINY, to=["size <= 0.2x"], out=out, effort="25s", resume=True, backend="openvino", **QUICK
    )
    recipes = [json.dumps(t.recipe, sort_keys=True) for t in r.doc.trials if t.state == "done"]
    assert len(recipes) == len(set(recipes))
    assert len(recipes) >= finished[-1]


def _told(out: Path) -> int:
    path = out / "search.sqlite"
    if not path.exists():
        return 0
    try:
        with sqlite3.connect(f"file:{path}?mode=ro", uri=True) as db:
            return db.execute("select count(*) from trials where state='COMPLETE'").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
