"""The search finds a good candidate with few measurements, survives failures, and loses nothing."""

import itertools
import math
import random

import pytest

from paredown.errors import CandidateFailed, InputError
from paredown.search.goal import Goal, Limit
from paredown.search.loop import Measured, Search
from paredown.search.predict import Predictor
from paredown.search.space import Axis, Candidate
from paredown.search.store import Store

AXES = [
    Axis("prune", ("off", "0.25", "0.5", "0.625")),
    Axis("precision", ("off", "bf16")),
    Axis("numeric", ("off", "int8", "dynamic", "int4")),
    Axis("spared", ("0", "0.1")),
    Axis("backend", ("eager", "inductor", "onnxruntime", "openvino")),
]
GOAL = Goal((Limit("latency", "<=", 2.5e-3), Limit("drop", "<=", 0.01)), "latency")


NAMES = [a.name for a in AXES]


def every():
    return [
        Candidate(tuple(zip(NAMES, labels, strict=True)))
        for labels in itertools.product(*[a.options for a in AXES])
        if not (labels[2] == "off" and labels[3] != "0")
    ]


def truth(candidate, rng):
    """A machine on which the same technique helps on one backend and hurts on another."""
    c = dict(candidate.point)
    base = {"eager": 20e-3, "inductor": 8e-3, "onnxruntime": 5e-3, "openvino": 4e-3}[c["backend"]]
    speed = {"off": 1, "0.25": 0.85, "0.5": 0.65, "0.625": 0.5}[c["prune"]]
    numeric = {
        ("int8", "eager"): 2.1,
        ("int8", "inductor"): 1.4,
        ("int8", "onnxruntime"): 0.7,
        ("int8", "openvino"): 0.55,
        ("dynamic", "openvino"): 1.1,
        ("int4", "openvino"): 0.95,
    }.get((c["numeric"], c["backend"]), 1.3 if c["numeric"] != "off" else 1.0)
    bf16 = {"eager": 1.2, "openvino": 0.6}.get(c["backend"], 0.8) if c["precision"] == "bf16" else 1
    if c["numeric"] == "int8" and c["precision"] == "bf16":
        bf16 = 1 - (1 - bf16) / 3
    spared = 1 + float(c["spared"]) * 0.6
    noise = math.exp(rng.gauss(0, 0.02))
    drop = {"off": 0, "0.25": 0.002, "0.5": 0.009, "0.625": 0.03}[c["prune"]]
    drop += {"off": 0, "int8": 0.004, "dynamic": 0.003, "int4": 0.02}[c["numeric"]]
    drop *= 1 - 4 * float(c["spared"])
    return {"latency": base * speed * numeric * bf16 * spared * noise, "drop": drop}


def prior(candidate, metric):
    c = dict(candidate.point)
    if metric == "drop":
        return 0.005 * (c["prune"] != "off") + 0.005 * (c["numeric"] != "off")
    guess = {"eager": 20e-3, "inductor": 10e-3, "onnxruntime": 6e-3, "openvino": 6e-3}
    return guess[c["backend"]] * (1 - float(c["prune"] if c["prune"] != "off" else 0))


def search(tmp_path, measure, *, resume=False, seed=0):
    store = Store(tmp_path / "s.sqlite", AXES, {"target": "t"}, resume=resume, seed=seed)
    return Search(every(), GOAL, Predictor(AXES, prior, GOAL.metrics), store, measure)


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_within_five_percent_of_the_best_with_twenty_of_two_hundred(tmp_path, seed):
    rng = random.Random(seed)
    table = {c: truth(c, rng) for c in every()}
    assert len(table) > 180
    best = min(GOAL.score(v) for v in table.values())
    assert not all(GOAL.met(v) for v in table.values())
    s = search(tmp_path, lambda id, c: Measured(table[c]), seed=seed)
    s.run(more=lambda: True, limit=20)
    assert s.best().score <= best + math.log(1.05)
    assert GOAL.met(s.best().values)


def test_of_very_many_candidates_a_fresh_sample_is_looked_at_each_turn(tmp_path, monkeypatch):
    monkeypatch.setattr("paredown.search.loop.LOOKED_AT", 40)
    rng = random.Random(0)
    table = {c: truth(c, rng) for c in every()}
    s = search(tmp_path, lambda id, c: Measured(table[c]))
    looked = [set(s._open())]
    s.run(more=lambda: True, limit=20)
    looked.append(set(s._open()))
    tried = [o.candidate for o in s.outcomes]
    assert all(len(x) <= 40 for x in looked)
    assert looked[0] != looked[1]
    assert len(tried) == len(set(tried)) == 20
    assert not looked[1] & set(tried)
    assert GOAL.met(s.best().values)


def test_failures_are_recorded_and_the_search_goes_on(tmp_path):
    def measure(id, candidate):
        if candidate.backend == "openvino":
            raise CandidateFailed("crashed: killed by SIGSEGV")
        return Measured(truth(candidate, random.Random(0)))

    s = search(tmp_path, measure)
    s.run(more=lambda: True, limit=12)
    states = {o.state for o in s.outcomes}
    assert states == {"done", "failed"}
    assert all("SIGSEGV" in o.body["reason"] for o in s.outcomes if o.state == "failed")


def test_a_killed_search_repeats_nothing_and_loses_nothing(tmp_path):
    calls = []

    class Killed(BaseException):
        pass

    def measure(id, candidate):
        if len(calls) == 5:
            raise Killed
        calls.append(candidate)
        return Measured(truth(candidate, random.Random(0)), {"note": len(calls)})

    with pytest.raises(Killed):
        search(tmp_path, measure).run(more=lambda: True, limit=12)
    first = list(calls)
    again = search(tmp_path, lambda id, c: Measured(truth(c, random.Random(0))), resume=True)
    again.recall()
    assert [o.candidate for o in again.outcomes] == first
    assert [o.body["note"] for o in again.outcomes] == [1, 2, 3, 4, 5]
    assert len(again.store.interrupted()) == 1
    again.run(more=lambda: True, limit=12)
    tried = [o.candidate for o in again.outcomes]
    assert len(tried) == len(set(tried)) == 17


PLAIN, QUICK, SLOW = (
    Candidate(tuple(zip(NAMES, labels, strict=True)))
    for labels in (
        ("off", "off", "off", "0", "openvino"),
        ("off", "off", "int8", "0", "openvino"),
        ("0.5", "off", "off", "0", "openvino"),
    )
)


def timed(tmp_path, latencies, seconds, effort, first, taken=None):
    """A search over candidates whose latencies are known to it, on a clock of its own: what it
    tried within the effort, in order. ``taken`` are seconds where they differ from the expected.
    """
    clock = [effort]

    def measure(id, c):
        clock[0] -= (taken or seconds)[c]
        return Measured({"latency": latencies[c], "drop": 0.0})

    def guess(c, metric):
        return latencies[c] if metric == "latency" else 0.0

    store = Store(tmp_path / "s.sqlite", AXES, {"target": "t"}, resume=False, seed=0)
    s = Search(
        list(latencies),
        GOAL,
        Predictor(AXES, guess, GOAL.metrics),
        store,
        measure,
        first,
        seconds=seconds.__getitem__,
        left=lambda: clock[0],
    )
    s.run(more=lambda: clock[0] > 0)
    return [o.candidate for o in s.outcomes]


@pytest.mark.parametrize(
    ("effort", "order"), [(106.0, [PLAIN, QUICK, SLOW]), (31.0, [PLAIN, SLOW])]
)
def test_gain_per_second_comes_first_unless_it_crowds_out_the_most_gain(tmp_path, effort, order):
    """A quick int8 is tried before a slow cut, but not when the cut would no longer fit."""
    latencies = {PLAIN: 5e-3, QUICK: 4.5e-3, SLOW: 4e-3}
    seconds = {PLAIN: 6.0, QUICK: 6.0, SLOW: 20.0}
    assert timed(tmp_path, latencies, seconds, effort, [PLAIN]) == order


def test_what_likely_meets_the_budget_first_is_not_crowded_out(tmp_path):
    """No time for both: the quick one that meets the limits goes before the deeper one."""
    latencies = {PLAIN: 5e-3, QUICK: 2.4e-3, SLOW: 2e-3}
    seconds = {PLAIN: 6.0, QUICK: 6.0, SLOW: 20.0}
    assert timed(tmp_path, latencies, seconds, 31.0, [PLAIN]) == [PLAIN, QUICK]


@pytest.mark.parametrize(
    ("effort", "order"),
    [(25.0, [PLAIN, QUICK]), (30.0, [PLAIN, SLOW, QUICK]), (35.0, [PLAIN, SLOW, QUICK])],
)
def test_openers_give_way_where_no_time_is_left_for_what_promises_most(tmp_path, effort, order):
    """Trials of ten seconds: of two the second is the promising one, of three the opener."""
    latencies = {PLAIN: 10e-3, QUICK: 2e-3, SLOW: 8e-3}
    seconds = dict.fromkeys(latencies, 10.0)
    assert timed(tmp_path, latencies, seconds, effort, [PLAIN, SLOW]) == order


def test_an_opener_that_the_search_picked_itself_is_not_measured_again(tmp_path):
    """The last opener promises most and overtakes; it took less than expected, so time is left."""
    latencies = {PLAIN: 10e-3, QUICK: 2e-3, SLOW: 8e-3}
    seconds = {PLAIN: 10.0, QUICK: 10.0, SLOW: 20.0}
    taken = seconds | {QUICK: 1.0}
    order = timed(tmp_path, latencies, seconds, 35.0, [PLAIN, SLOW, QUICK], taken)
    assert order == [PLAIN, QUICK, SLOW]


def test_a_search_resumed_with_another_budget_is_scored_by_that(tmp_path):
    s = search(tmp_path, lambda id, c: Measured(truth(c, random.Random(0))))
    s.run(more=lambda: True, limit=6)
    store = Store(tmp_path / "s.sqlite", AXES, {"target": "t"}, resume=True, seed=0)
    strict = Goal((Limit("latency", "<=", 1e-6),), "latency")
    again = Search(every(), strict, Predictor(AXES, prior, strict.metrics), store, s.measure)
    again.recall()
    assert [o.score for o in again.outcomes] == [strict.score(o.values) for o in s.outcomes]


def test_resume_refuses_another_search_by_name(tmp_path):
    search(tmp_path, lambda id, c: Measured({}))
    with pytest.raises(InputError, match="the target is not the one"):
        Store(tmp_path / "s.sqlite", AXES, {"target": "other"}, resume=True, seed=0)
    with pytest.raises(InputError, match="--resume"):
        search(tmp_path, lambda id, c: Measured({}))


def test_goal_puts_constraints_before_cost():
    slow_but_good = {"latency": 2.4e-3, "drop": 0.0}
    fast_but_bad = {"latency": 0.1e-3, "drop": 0.05}
    assert GOAL.score(slow_but_good) < GOAL.score(fast_but_bad)
    assert GOAL.met(slow_but_good)
    assert GOAL.binding(fast_but_bad) == "drop"
    assert not GOAL.met({"latency": 1e-3})


def test_openers_leave_time_for_two_where_there_are_two(tmp_path):
    """The promising one may miss: of three trials the opener has none, of four the second."""
    other = next(c for c in every() if c not in (PLAIN, QUICK, SLOW))
    latencies = {PLAIN: 10e-3, QUICK: 2e-3, SLOW: 8e-3, other: 2.1e-3}
    seconds = dict.fromkeys(latencies, 10.0)
    (tmp_path / "three").mkdir()
    (tmp_path / "four").mkdir()
    assert SLOW not in timed(tmp_path / "three", latencies, seconds, 35.0, [PLAIN, SLOW])
    assert timed(tmp_path / "four", latencies, seconds, 45.0, [PLAIN, SLOW])[1] == SLOW
