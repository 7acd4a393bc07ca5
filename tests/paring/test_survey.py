"""The survey: every cut judged alone against the original; one that breaks costs only itself."""

from pathlib import Path

import pytest

from paredown.graph.capture import capture
from paredown.paring import candidates, request, survey
from paredown.paring.effort import Grant
from paredown.paring.prior import prior
from paredown.search import trial

TINY = f"{Path(__file__).with_name('tiny.py')}:target"


@pytest.fixture
def ready(tmp_path):
    """A request with its space and its first guess, nothing run yet."""
    asked = request.make(
        TINY, to=["size <= 0.5x", "drop <= 10%"], only=["structured-pruning"], threads=1,
        backend="eager", out=tmp_path / "out",
    )  # fmt: skip
    graph = capture(asked.workload)
    space = candidates.space(asked, candidates.choices(asked, graph, Grant(10, 0.1)), lambda _: [])
    guess = prior(space, graph, asked.device, scale=asked.workload.scale)
    (asked.out / "shared").mkdir(parents=True)
    return asked, space, guess


def test_the_middle_and_the_ends_come_first(ready):
    _, space, guess = ready
    labels = [label for _, label in survey.cuts(space, guess)]
    assert labels[:3] == ["0.375", "0.625", "0.125"]
    assert sorted(labels) == ["0.125", "0.25", "0.375", "0.5", "0.625"]


def test_losses_are_those_of_the_cut_alone_and_a_fault_costs_one_row(ready, monkeypatch):
    asked, space, guess = ready
    steps = survey.cuts(space, guess)[:3]
    specs = [(s, survey._spec(asked, space, guess, s)) for s in steps]
    recipe = specs[0][1].recipe
    assert [s.technique for s in recipe.steps][:1] == ["structured-pruning"]
    assert all(s.technique in ("structured-pruning", "recover") for s in recipe.steps)
    real = trial.rewrite

    def rewrite(spec, original):
        if spec is specs[1][1]:
            raise ValueError("no such luck")
        return real(spec, original)

    monkeypatch.setattr(trial, "rewrite", rewrite)
    rows = survey._judge(survey.Asked(specs, 60.0))
    assert [r["label"] for r in rows] == ["0.375", "0.625", "0.125"]
    assert rows[1]["failed"] == "ValueError: no such luck"
    deep, shallow = rows[0]["loss"], rows[2]["loss"]
    assert deep.keys() == {"drop", "fidelity"}
    assert deep["fidelity"] >= shallow["fidelity"] > -1e-6
    assert -1 <= deep["drop"] <= 1


def test_time_ends_it_after_the_first(ready):
    asked, space, guess = ready
    steps = survey.cuts(space, guess)
    specs = [(s, survey._spec(asked, space, guess, s)) for s in steps]
    assert len(survey._judge(survey.Asked(specs, 0.0))) == 1
