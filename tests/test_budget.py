"""Budgets: what a constraint means, what is refused before any work, and how a verdict follows."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from paredown import budget
from paredown.budget import METRICS, UNITS, Constraint, parse
from paredown.errors import BudgetError
from paredown.figure import Figure, counted, measured, nominal, predicted, unavailable
from paredown.workload import TargetRef, Workload


def one(text: str) -> Constraint:
    return parse([text]).constraints[0]


def workload(**changes) -> Workload:
    given = {"model": nn.Identity(), "inputs": (torch.zeros(1),), "scale": 1.0, "evaluate": float}
    return Workload(**{**given, **changes})


@pytest.mark.parametrize(
    ("text", "metric", "op", "value", "unit", "relative_to"),
    [
        ("latency <= 0.3x", "latency", "<=", 0.3, "x", "baseline"),
        ("latency<=30%", "latency", "<=", 0.3, "x", "baseline"),
        ("  latency  <=  5ms ", "latency", "<=", 0.005, "s", None),
        ("latency.p95 <= 250 us", "latency.p95", "<=", 0.00025, "s", None),
        ("latency.per_token <= 1e-2 s", "latency.per_token", "<=", 0.01, "s", None),
        ("memory <= 64 MiB", "memory", "<=", 64 * 2**20, "B", None),
        ("size <= 1.5 MB", "size", "<=", 1.5e6, "B", None),
        ("energy <= 3 mJ", "energy", "<=", 0.003, "J", None),
        ("throughput >= 2x", "throughput", ">=", 2.0, "x", "baseline"),
        ("throughput >= 100 runs/s", "throughput", ">=", 100.0, "runs/s", None),
        ("macs <= 300M", "macs", "<=", 300e6, "MAC", None),
        ("params <= 0.5x", "params", "<=", 0.5, "x", "target"),
        ("score >= 0.9x", "score", ">=", 0.9, "x", "original"),
        ("drop <= 0.01", "drop", "<=", 0.01, "score", None),
        ("drop <= 0", "drop", "<=", 0.0, "score", None),
        ("drop <= 1%", "drop", "<=", 1.0, "%", None),
        ("fidelity >= 99%", "fidelity", ">=", 0.99, "1", None),
        ("latency ≤ 2 µs", "latency", "<=", 2e-6, "s", None),
    ],
)
def test_a_constraint_means(text, metric, op, value, unit, relative_to):
    c = one(text)
    assert (c.metric, c.op, c.unit, c.relative_to) == (metric, op, unit, relative_to)
    assert c.value == pytest.approx(value, rel=1e-12)


@pytest.mark.parametrize(
    ("texts", "says"),
    [
        ([], "no constraint"),
        ([""], "malformed"),
        (["latency"], "malformed"),
        (["latency 0.3x"], "malformed"),
        (["latency <= fast"], "malformed"),
        (["latency <= nan"], "malformed"),
        (["latency <= 1 ms\nsize <= 1 B"], "malformed"),
        (["latency < 1 ms"], "use <= or >="),
        (["latency = 1 ms"], "use <= or >="),
        (["latncy <= 1 ms"], "did you mean latency"),
        (["speed <= 1 ms"], "unknown metric 'speed'"),
        (["latency.p42 <= 1 ms"], "there is latency.first"),
        (["size.p50 <= 1 B"], "only size itself"),
        (["latency. <= 1 ms"], "unknown metric"),
        (["latency <= -1 ms"], "negative"),
        (["latency <= -0 ms"], "negative"),
        (["latency <= 0x"], "above zero"),
        (["latency <= 1e999 s"], "not finite"),
        (["latency <= 5"], "needs a unit"),
        (["latency <= 5 MiB"], "unit 'MiB' does not fit"),
        (["latency <= 5 parsecs"], "unit 'parsecs' does not fit"),
        (["size <= 5 ms"], "unit 'ms' does not fit"),
        (["drop <= 0.1x"], "not a ratio"),
        (["fidelity >= 1x"], "not a ratio"),
        (["fidelity >= 99"], "at most 1"),
        (["latency >= 1 ms"], "from the other side"),
        (["score <= 0.9"], "from the other side"),
        (["latency <= 1 ms", "latency >= 2 ms"], "contradict"),
        (["throughput >= 5 /s", "throughput <= 2 /s"], "contradict"),
        (["latency <= 1 ms", "latency <= 2 ms"], "twice"),
        (["size <= 30%", "size <= 0.4x"], "twice"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_line(texts, says):
    with pytest.raises(BudgetError, match=says) as e:
        parse(texts)
    assert "\n" not in str(e.value)


def test_a_ratio_and_an_absolute_bound_on_one_metric_may_stand_together():
    assert len(parse(["latency <= 0.3x", "latency <= 5 ms", "latency.p95 <= 5 ms"])) == 3


def test_every_metric_can_be_asked_for_in_its_own_unit():
    for m in METRICS.values():
        unit = next(iter(UNITS[m.unit]))
        assert one(f"{m.name} {m.better} 0.5 {unit}").value == 0.5


@given(
    value=st.floats(1e-6, 1e6),
    unit=st.sampled_from([(m.name, m.better, u, f) for m in METRICS.values()
                          for u, f in UNITS[m.unit].items() if m.name != "fidelity"]),
)  # fmt: skip
def test_units_scale_exactly(value, unit):
    name, op, written, factor = unit
    assert one(f"{name} {op} {value!r} {written}").value == value * factor


# ---------------------------------------------------------------- judging


def test_met_by_the_point_estimate_and_proven_by_the_upper_end():
    c = one("latency <= 0.3x")
    assert c.judge(measured(0.29, "x", spread=(0.28, 0.31))).met
    assert c.judge(measured(0.29, "x", spread=(0.28, 0.31))).proven is False
    assert c.judge(measured(0.29, "x", spread=(0.28, 0.30))).proven is True
    assert c.judge(measured(0.29, "x")).proven is None
    assert not c.judge(measured(0.31, "x", spread=(0.29, 0.33))).met


def test_a_floor_is_proven_by_the_lower_end():
    c = one("throughput >= 2x")
    assert c.judge(measured(2.1, "x", spread=(1.9, 2.3))).proven is False
    assert c.judge(measured(2.1, "x", spread=(2.0, 2.3))).proven is True


def test_a_ratio_is_taken_against_the_baseline():
    r = one("size <= 0.3x").judge(counted(29, "B"), counted(100, "B"))
    assert (r.met, r.proven, r.achieved.value, r.achieved.unit, r.achieved.how) == (
        True,
        True,
        0.29,
        "x",
        "counted",
    )
    r = one("latency <= 0.5x").judge(measured(2, "s", spread=(1, 3)), measured(4, "s"))
    assert (r.met, r.proven, r.achieved.spread) == (True, False, (0.25, 0.75))


def test_exact_bounds_are_met_whatever_binary_fractions_do():
    assert one("size <= 0.3x").judge(counted(3, "B"), counted(10, "B")).met
    assert one("drop <= 0.01").judge(measured(0.9 - 0.89, "score")).met


@pytest.mark.parametrize(
    ("achieved", "baseline", "why"),
    [
        (unavailable("s", "no clock"), measured(1, "s"), "no clock"),
        (measured(1, "s"), None, "not measured"),
        (measured(1, "s"), unavailable("s", "no clock"), "no clock"),
        (measured(1, "s"), measured(0, "s"), "is 0"),
        (nominal(0.1, "x"), None, "nominal"),
        (predicted(0.1, "x"), None, "--accept predicted"),
    ],
)
def test_what_is_not_known_does_not_meet_a_budget_and_says_why(achieved, baseline, why):
    r = one("latency <= 0.3x").judge(achieved, baseline)
    assert not r.met
    assert why in (r.why or "")


def test_a_prediction_decides_only_when_accepted():
    c = one("latency <= 0.3x")
    assert c.judge(predicted(0.2, "x"), accept_predicted=True).met
    assert not c.judge(nominal(0.2, "x"), accept_predicted=True).met
    weakest = c.judge(predicted(1.0, "s"), measured(10.0, "s"))
    assert weakest.achieved.how == "predicted"


def test_an_absolute_bound_is_not_judged_on_a_ratio():
    assert "only as a ratio" in (one("latency <= 5 ms").judge(measured(0.2, "x")).why or "")


def test_a_quantile_is_picked_from_the_whole():
    whole = Figure(value=1, unit="s", how="measured", quantiles={"p95": 3.0}, over="inputs", n=200)
    assert one("latency.p95 <= 4 s").pick({"latency": whole}).value == 3.0
    assert one("latency.p99 <= 4 s").pick({"latency": whole}).how == "unavailable"
    assert one("latency.p95 <= 4 s").pick({}).how == "unavailable"


def test_a_whole_budget_prefers_paired_ratios():
    b = parse(["latency <= 0.3x", "size <= 50 B"])
    latency, size = b.judge(
        {"latency": measured(4, "s"), "size": counted(40, "B")},
        {"latency": measured(10, "s"), "size": counted(100, "B")},
        {"latency": measured(0.25, "x")},
    )
    assert (latency.achieved.value, latency.met) == (0.25, True)
    assert (size.achieved.value, size.met) == (40, True)


# ---------------------------------------------------------------- verdicts


def verdict(text: str, figure: Figure, candidates=None, *, strict=False, accept=False):
    b = parse([text])
    results = [b.constraints[0].judge(figure, accept_predicted=accept)]
    return b.verdict(results, candidates, strict=strict), b.binding(results)


def test_verdicts():
    fast, slow = measured(0.2, "x", spread=(0.19, 0.33)), measured(0.5, "x", spread=(0.4, 0.6))
    assert verdict("latency <= 0.3x", fast) == ("met", None)
    assert verdict("latency <= 0.3x", fast, strict=True)[0] == "infeasible"
    assert verdict("latency <= 0.3x", slow) == ("infeasible", "latency <= 0.3x")
    assert verdict("latency <= 0.3x", predicted(0.2, "x"), accept=True)[0] == "predicted_met"
    assert verdict("latency <= 0.3x", predicted(0.5, "x"), accept=True)[0] == "predicted_infeasible"


def test_no_gain_when_no_interval_lies_below_one():
    no = measured(0.98, "x", spread=(0.95, 1.01))
    assert verdict("latency <= 0.3x", no, [{"latency": no}])[0] == "no_gain"
    yes = measured(0.98, "x", spread=(0.95, 0.99))
    assert verdict("latency <= 0.3x", yes, [{"latency": no}, {"latency": yes}])[0] == "infeasible"
    assert verdict("throughput >= 3x", yes, [{"throughput": yes}])[0] == "no_gain"
    assert verdict("latency <= 0.3x", no, [])[0] == "no_gain"


def test_what_binds_is_the_constraint_furthest_off():
    b = parse(["latency <= 0.5x", "size <= 0.5x", "memory <= 0.5x"])
    figures = {"latency": measured(0.6, "x"), "size": measured(0.9, "x")}
    results = [c.judge(figures.get(c.metric, measured(0.4, "x"))) for c in b]
    assert b.binding(results) == "size <= 0.5x"
    results[2] = b.constraints[2].judge(unavailable("B", "no interposer"))
    assert b.binding(results) == "memory <= 0.5x"


# ---------------------------------------------------------------- against a workload and a machine


@pytest.mark.parametrize(
    ("text", "changes", "says"),
    [
        ("drop <= 1%", {"evaluate": None}, "needs `evaluate`"),
        ("score >= 0.5", {"evaluate": None}, "needs `evaluate`"),
        ("drop <= 1%", {"scale": None}, "unknown"),
        ("score >= 90%", {"scale": 10.0}, "10"),
        ("drop <= 1", {}, "any loss"),
        ("score >= 95", {}, "did you mean score >= 95%"),
        ("latency.first <= 1 ms", {}, "generate"),
        ("throughput >= 5 tokens/s", {}, "no tokens"),
        ("fidelity >= 0.9", {"source": TargetRef("hf:x", random_weights=True)}, "random-weights"),
    ],
)
def test_a_workload_that_cannot_be_judged_so_is_refused(text, changes, says):
    with pytest.raises(BudgetError, match=says) as e:
        parse([text]).check_workload(workload(**changes))
    assert "\n" not in str(e.value)


def test_percent_of_the_scale_is_resolved():
    b = parse(["drop <= 1%", "latency <= 1 ms"]).check_workload(workload(scale=100.0))
    assert (b.constraints[0].value, b.constraints[0].unit) == (1.0, "score")
    assert b.constraints[0].judge(measured(0.9, "score", spread=(0.5, 1.2))).met
    assert parse(["score >= 95%"]).check_workload(workload()).constraints[0].value == 0.95


def test_an_unresolved_percent_is_never_judged():
    with pytest.raises(BudgetError, match="scale"):
        one("drop <= 1%").judge(measured(0.005, "score"))


def test_the_gate_that_is_added_when_the_user_names_none():
    b = parse(["latency <= 0.5x"])
    assert b.gated(workload()).quality[0].text == "drop <= 1%"
    assert b.gated(workload(scale=100.0)).quality[0].value == 1.0
    added = b.gated(workload(evaluate=None)).quality[0]
    assert (added.metric, added.value, added.implied) == ("fidelity", 0.99, True)
    assert b.gated(workload(), random_weights=True).quality == ()
    own = parse(["latency <= 0.5x", "fidelity >= 0.9"])
    assert own.gated(workload()) is own


def test_what_this_machine_cannot_measure_is_refused_unless_predictions_are_accepted():
    b = parse(["energy <= 0.5x"])
    with pytest.raises(BudgetError, match="no RAPL"):
        b.check_machine({"energy": "no RAPL"})
    b.check_machine({"energy": "no RAPL"}, accept_predicted=True)
    b.check_machine({"traffic": "no counters"})
    with pytest.raises(BudgetError, match="pi5 is not this machine"):
        parse(["latency <= 1 ms"]).check_machine({}, device="pi5")
    # Refused whatever is asked: nothing at all happens on another device.
    counted_only = parse(["size <= 1 MB", "drop <= 1%"])
    with pytest.raises(BudgetError, match="--accept predicted"):
        counted_only.check_machine({}, device="pi5")
    counted_only.check_machine({}, device="pi5", accept_predicted=True)
    with pytest.raises(BudgetError, match="without p95"):
        parse(["latency.p95 <= 1 ms"]).check_machine({}, device="pi5", accept_predicted=True)
    with pytest.raises(BudgetError, match="no RAPL; and pi5 states no energy"):
        b.check_machine(
            {"energy": "no RAPL"},
            accept_predicted=True,
            unpredictable={"energy": "pi5 states no energy"},
        )


def test_budget_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, paredown.budget; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    assert budget.parse(["size <= 1 B"]).texts == ["size <= 1 B"]
