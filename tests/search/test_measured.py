"""The search on measurements of a real machine: within 5 % of the best in 20 of some 200.

`benchmarks/enumerate.py` wrote the table; predictions in it are what the search had before a trial.
"""

import json
import math
from pathlib import Path

import pytest

from paredown.errors import CandidateFailed
from paredown.search.goal import Goal, Limit
from paredown.search.loop import Measured, Search
from paredown.search.predict import Predictor
from paredown.search.space import Axis, Candidate
from paredown.search.store import Store

DOC = json.loads((Path(__file__).parent / "measured.json").read_text())
AXES = [Axis(name, tuple(options)) for name, options in DOC["axes"]]
GOAL = Goal(tuple(Limit(*limit) for limit in DOC["limits"]), DOC["objective"])
ROWS = {
    Candidate(tuple(zip([a.name for a in AXES], row["point"], strict=True))): row
    for row in DOC["rows"]
}
MEASURED = {c: r["measured"] for c, r in ROWS.items() if "measured" in r}


def measure(id, candidate):
    row = ROWS[candidate]
    if "failed" in row:
        raise CandidateFailed(row["failed"])
    return Measured(row["measured"])


def search(folder, seed):
    store = Store(folder / "s.sqlite", AXES, {"target": "table"}, resume=False, seed=seed)
    predictor = Predictor(AXES, lambda c, m: ROWS[c]["predicted"][m], GOAL.metrics)
    return Search(list(ROWS), GOAL, predictor, store, measure)


def test_the_table_is_worth_searching():
    assert 180 <= len(MEASURED) <= 260
    assert 0 < sum(GOAL.met(v) for v in MEASURED.values()) < 0.9 * len(MEASURED)
    scores = sorted(GOAL.score(v) for v in MEASURED.values())
    near = [x for x in scores if x <= scores[0] + math.log(1.05)]
    assert len(near) <= 0.06 * len(MEASURED), "twenty at random would be enough"


@pytest.mark.parametrize("seed", range(5))
def test_within_five_percent_of_the_best_with_twenty_measurements(tmp_path, seed):
    best = min(GOAL.score(v) for v in MEASURED.values())
    s = search(tmp_path, seed)
    s.run(more=lambda: True, limit=20)
    assert len(s.outcomes) == 20
    assert s.best().score <= best + math.log(1.05)
    assert GOAL.met(s.best().values)
