"""The techniques' benchmark: its verdicts, its book of rows, its conditions on networks."""

import json
import math
from pathlib import Path

import pytest
import torch
from torch import nn

from paredown.errors import CandidateFailed
from paredown.workload import Workload

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def bench(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import technique_check
    import technique_families
    import technique_results
    import techniques

    class Bench:
        check, families, results, run = (
            technique_check,
            technique_families,
            technique_results,
            techniques,
        )

    return Bench


def arms(ratio, drops=(0.0, 0.0), sizes=(100, 100), spread=0.02):
    over = {"over_without": ratio, "over_without_interval": [ratio - spread, ratio + spread]}
    return {
        "with": {"drop": drops[0], "size_bytes": sizes[0], **over},
        "without": {"drop": drops[1], "size_bytes": sizes[1]},
    }


@pytest.mark.parametrize(
    ("ratio", "verdict"), [(0.5, "win"), (0.99, "tie"), (1.01, "tie"), (1.1, "loss")]
)
def test_latency_is_won_or_lost_where_the_interval_leaves_one_out(bench, ratio, verdict):
    found = bench.families.judged(arms(ratio), "latency", 0.01)
    assert found["verdict"] == verdict
    assert found["gain"] == pytest.approx(1 / ratio)
    low, high = found["gain_interval"]
    assert low < found["gain"] < high


def test_sizes_are_counted_exactly(bench):
    assert bench.families.judged(arms(9, sizes=(50, 100)), "size", 0.01)["gain"] == 2
    assert bench.families.judged(arms(9, sizes=(101, 100)), "size", 0.01)["verdict"] == "loss"


@pytest.mark.parametrize(
    ("drops", "verdict"), [((0, 0.02), "win"), ((0.02, 0), "loss"), ((0.02, 0.03), "neither")]
)
def test_a_result_that_loses_quality_has_no_gain(bench, drops, verdict):
    found = bench.families.judged(arms(0.5, drops), "latency", 0.01)
    assert (found["verdict"], found["gain"]) == (verdict, None)


def test_a_win_without_any_of_the_families_is_luck_and_no_gain(bench):
    found = {**arms(9, sizes=(50, 100)), "families_used": []}
    verdict = bench.families.judged(found, "size", 0.01)
    lucky = bench.families.credited(verdict, found)
    assert lucky["verdict"] == "luck"
    assert bench.families.credited(verdict, {"families_used": ["nf4"]})["verdict"] == "win"
    row = {**lucky, "row": "a/latency", "scale": "quick"}
    assert bench.results.summary([row], plan(), "quick")["geometric_mean"] == 1.0


def plan():
    return {
        "hash": "h",
        "networks": {"a": {}, "b": {}},
        "budgets": {"latency": {}},
        "asked": {"geometric_mean": 1.3, "losses": 0},
        "peers": {"p": {"networks": ["a", "b"], "metrics": ["score", "size"]}},
        "asked_of_peers": {"win_or_tie": 0.8},
        "fit": {"fp32": [0.8, 0.95], "plain_4bit_loses": 0.05},
    }


def test_the_mean_is_geometric_and_all_rows_must_be_there(bench):
    rows = [
        {"row": "a/latency", "scale": "quick", "verdict": "win", "gain": 4.0},
        {"row": "b/latency", "scale": "quick", "verdict": "tie", "gain": 1.0},
        {"row": "b/latency", "scale": "full", "verdict": "loss", "gain": 0.1},
    ]
    found = bench.results.summary(rows, plan(), "quick")
    assert found["geometric_mean"] == pytest.approx(2.0)
    assert found["reached"]
    assert not bench.results.summary(rows[:1], plan(), "quick")["reached"]
    lost = [*rows[:1], {**rows[1], "verdict": "loss"}]
    assert not bench.results.summary(lost, plan(), "quick")["reached"]


def test_peers_are_counted_and_lost_rows_want_an_explanation(bench, monkeypatch):
    monkeypatch.setattr(bench.results, "explanations", lambda: {"p/a/size": "a header"})
    rows = [
        {"row": "p/a", "metrics": {"score": {"verdict": "win"}, "size": {"verdict": "loss"}}},
        {"row": "p/b", "metrics": {"score": {"verdict": "loss"}, "size": {"verdict": "tie"}}},
    ]
    found = bench.results.peers_summary(rows, plan())
    assert (found["win"], found["tie"], found["loss"], found["of"]) == (1, 1, 2, 4)
    assert found["unexplained"] == ["p/b/score"]
    assert not found["reached"]


class Stopped(BaseException):
    pass


def test_an_interrupted_run_goes_on_where_it_stopped(bench, tmp_path, monkeypatch):
    fit = bench.check.Fitness(0.9, 0.5, 100)
    monkeypatch.setattr(bench.run, "asserted", lambda names, plan: dict.fromkeys(names, fit))
    file, made = tmp_path / "t.json", []

    def row(name):
        if len(made) == 1:
            raise Stopped
        made.append(name)
        return {"verdict": "win", "gain": 2.0, "families_used": []}

    rows = ["a/latency", "b/latency"]
    book = bench.results.Book.open(file, plan(), "quick")
    with pytest.raises(Stopped):
        bench.run.run(book, "families", rows, row, math.inf)
    assert [r["row"] for r in json.loads(file.read_text())["families"]] == ["a/latency"]

    def failing(name):
        made.append(name)
        raise CandidateFailed("crashed")

    again = bench.results.Book.open(file, plan(), "quick")
    bench.run.run(again, "families", rows, failing, math.inf)
    assert made == rows
    body = json.loads(file.read_text())
    assert body["families"][1]["failed"].endswith("crashed")
    assert body["summary"]["quick"]["rows"] == 1
    # What failed is tried again; another plan's rows are not taken over.
    book = bench.results.Book.open(file, plan(), "quick")
    assert not book.has("families", "b/latency")
    assert bench.results.Book.open(file, {**plan(), "hash": "x"}, "quick").rows["families"] == []


def test_two_runs_at_once_keep_each_others_rows(bench, tmp_path):
    file = tmp_path / "t.json"
    one, other = (bench.results.Book.open(file, plan(), "quick") for _ in range(2))
    row = {"scale": "quick", "plan": "h", "verdict": "win", "gain": 2.0}
    one.add("families", {**row, "row": "a/latency"})
    other.add("families", {**row, "row": "b/latency"})
    one.add("peers", {"row": "p/a", "scale": "quick", "plan": "h", "failed": "no such package"})
    body = json.loads(file.read_text())
    assert [r["row"] for r in body["families"]] == ["a/latency", "b/latency"]
    assert body["peers_summary"]["not testable here"] == {"p/a": "no such package"}


def test_a_network_that_cannot_tell_techniques_apart_is_refused(bench, monkeypatch):
    asked = plan()["fit"]
    assert bench.check.Fitness(0.9, 0.8, 10).why_not(asked) is None
    assert "outside" in bench.check.Fitness(0.99, 0.5, 10).why_not(asked)
    assert "plain 4 bits" in bench.check.Fitness(0.9, 0.88, 10).why_not(asked)
    nets = dict.fromkeys("ab", lambda: None)
    monkeypatch.setattr(bench.run.technique_nets, "NETWORKS", nets)
    unfit = bench.check.Fitness(0.99, 0.5, 10)
    monkeypatch.setattr(bench.run.technique_check, "fitness", lambda _: unfit)
    book = bench.results.Book(None, plan(), "quick", {"families": [], "peers": []})
    with pytest.raises(SystemExit, match=r"a scores 0\.990"):
        bench.run.asserted(["a", "b"], book)
    # A row of the same plan tells how fit its network is.
    fit = {"fp32": 0.9, "plain_4bit": 0.5, "examples": 10}
    book.rows["peers"] = [{"row": f"p/{n}", "fit": fit} for n in "ab"]
    assert bench.run.asserted(["a", "b"], book)["b"].fp32 == 0.9


def test_metrics_of_a_peers_row_are_taken_apart_and_kept(bench):
    book = bench.results.Book(None, plan(), "quick", {"families": [], "peers": []})

    def run(metric, value, date):
        found = {metric: {"value": value, "verdict": "tie"}}
        book.add("peers", {"row": "p/a", "scale": "quick", "metrics": found, "date": date})

    run("score", 0.0, "first")
    assert book.lacks("p/a", ["score", "latency"]) == ("latency",)
    run("latency", 1.0, "second")
    run("score", 0.5, "third")
    (row,) = book.rows["peers"]
    assert {m: (x["value"], x["date"]) for m, x in row["metrics"].items()} == {
        "score": (0.5, "third"),
        "latency": (1.0, "second"),
    }
    book.add("peers", {"row": "p/a", "scale": "quick", "failed": "hung"})
    assert set(book.rows["peers"][0]["metrics"]) == {"score", "latency"}


def test_plain_4_bits_leave_sixteen_values_and_the_original_alone(bench):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4))
    before = model[0].weight.clone()
    seen = []
    work = Workload(model, (torch.randn(1, 8),), calibration=list(torch.randn(64, 8).split(1)))
    rounded = bench.check.plain_4bit(work)
    rounded[0].register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    rounded(torch.randn(256, 8))
    assert len(rounded[0].weight.unique()) <= 15
    assert 2 < len(seen[0].unique()) <= 16
    assert torch.equal(model[0].weight, before)


def test_the_plan_names_networks_techniques_and_peers_that_exist(bench, monkeypatch):
    import technique_nets
    import technique_peers

    from paredown import registry

    found = bench.results.read_plan("quick")
    assert set(found["networks"]) == set(technique_nets.NETWORKS)
    assert set(found["peers"]) == set(technique_peers.PEERS)
    named = [*found["base"], *(f for b in found["budgets"].values() for f in b["families"])]
    assert all(registry.technique(n).maturity in ("stable", "trial") for n in named)
    rows = bench.run.names(found, "families", list(found["networks"]))
    assert len(rows) == 12
    assert {bench.run.network_of("families", r) for r in rows} == set(found["networks"])
