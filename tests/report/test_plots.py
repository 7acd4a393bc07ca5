import re

import pytest
from report import samples

from paredown.report import plots, search_plots, svg
from paredown.result import MemoryPoint


def test_bars_keep_all_work_bytes_and_time_when_joined() -> None:
    rows = samples.profile_doc(repeat=17).operators
    joined = plots.bars(rows)
    assert len(joined) <= plots.WIDEST + 1
    assert sum(b.count for b in joined) == len(rows)
    assert sum(b.macs for b in joined) == sum(r.macs or 0 for r in rows)
    assert sum(b.moved for b in joined) == sum(r.bytes_read + r.bytes_written for r in rows)
    assert sum(b.seconds for b in joined) == pytest.approx(
        sum(plots.seconds_of(r) or 0.0 for r in rows)
    )


def test_few_operators_are_a_bar_each() -> None:
    rows = samples.profile_doc().operators[:7]
    assert [b.count for b in plots.bars(rows)] == [1] * 7


def test_the_waterline_is_drawn_where_it_is() -> None:
    doc = samples.profile_doc()
    text = plots.waterline("w", doc.operators, doc.waterline, "it")
    assert text is not None
    assert text.count('class="bar ') == len(doc.operators)
    drawn = re.search(r'class="level" d="M[\d.]+,([\d.]+)L', text)
    assert drawn is not None
    line = float(drawn[1])
    tops = {float(m[1]) for m in re.finditer(r'class="bar memory" x="[\d.]+" y="([\d.]+)"', text)}
    # Every operator bound by memory ends below the line (y grows downwards).
    assert min(tops) >= line


def test_no_water_level_no_figure() -> None:
    doc = samples.profile_doc()
    assert plots.waterline("w", doc.operators, {}, "it") is None
    assert plots.waterline("w", [], doc.waterline, "it") is None


def test_the_gap_is_between_ideal_and_actual() -> None:
    doc = samples.down_doc()
    ideal = plots.ideal(doc.operators_before)
    assert ideal == pytest.approx(sum(o.macs or 0 for o in doc.operators_before) / 75e9)
    net = plots.Net("original", "before", "s", doc.before.figures["latency"], ideal, 0.93)
    text = plots.gap("g", [net])
    assert text is not None
    assert f"{ideal / 6.15e-3:.1%} of peak" in text
    assert plots.gap("g", []) is None


def test_parts_are_disjoint_and_their_time_is_within_the_whole() -> None:
    rows = samples.profile_doc().operators
    parts = plots.parts(rows, 4)
    names = [p.name for p in parts]
    assert len(names) == 4
    assert not any(a != b and b.startswith(a + ".") for a in names for b in names)
    assert sum(p.actual.known() for p in parts) <= sum(plots.seconds_of(r) or 0 for r in rows)
    assert plots.parts([]) == []


def test_no_peak_is_lost_when_a_timeline_is_thinned() -> None:
    points = [MemoryPoint(index=i, live_bytes=100 + (i == 777) * 900) for i in range(5000)]
    thinned = plots.thin(points)
    assert len(thinned) <= plots.WIDEST + 1
    assert max(v for _, v in thinned) == 1000
    assert thinned[-1][0] == 1.0
    assert plots.memory("m", [("x", "after", [])]) is None


def test_the_front_holds_what_nothing_else_beats() -> None:
    points = [(3.0, 1.0), (1.0, 3.0), (2.0, 2.0), (2.5, 2.5), (3.5, 1.0)]
    assert search_plots.front(points) == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    assert search_plots.front([(1.0, 0.9), (2.0, 0.8), (3.0, 0.95)], up=True) == [
        (1.0, 0.9),
        (3.0, 0.95),
    ]


def test_every_measured_candidate_is_on_the_front_figure() -> None:
    doc = samples.down_doc()
    text = search_plots.pareto("p", doc)
    assert text is not None
    done = sum(t.state == "done" for t in doc.trials)
    assert text.count('class="trial"') == done
    assert ">best single backend<" in text
    alone = doc.model_copy(update={"trials": []})
    for metric in ("drop", "fidelity", "size"):
        alone.after.figures.pop(metric, None)
    assert search_plots.pareto("p", alone) is None


def test_only_trials_with_both_are_compared() -> None:
    doc = samples.down_doc()
    pairs = search_plots.pairs(doc.trials)
    assert len(pairs) == sum(t.state == "done" for t in doc.trials)
    text = search_plots.agreement("a", pairs, "candidates")
    assert text is not None
    assert text.count('class="trial"') == len(pairs)
    assert search_plots.agreement("a", [], "candidates") is None


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_keeps_order_and_ticks_stay_inside(log: bool) -> None:
    scale = svg.Scale(0.003, 47.0, 50, 450, log)
    assert scale(0.003) == 50
    assert scale(47.0) == 450
    values = [0.003, 0.01, 0.5, 3.0, 47.0]
    at = [scale(v) for v in values]
    assert at == sorted(at)
    ticks = scale.ticks()
    assert 2 <= len(ticks) <= 12
    assert all(0.003 * 0.999 <= t <= 47.0 * 1.001 for t in ticks)
    assert len(ticks) == len(set(ticks))


@pytest.mark.parametrize("value", [0.0, 1e-9, 5.0, 1e12])
def test_one_value_has_a_scale_too(value: float) -> None:
    for log in (False, True):
        low, high = svg.span([value], log=log)
        assert low < high
        assert low <= value <= high or (log and value == 0)


def test_texts_of_a_figure_are_escaped() -> None:
    plot = svg.Plot("p", "<b>", "a & b", (0, 1), (0, 1))
    plot.dot(0.5, 0.5, "trial", '"><script>')
    plot.text(0.5, 0.5, "<i>")
    drawn = plot.svg()
    assert "<script>" not in drawn
    assert "<i>" not in drawn
    assert "a &amp; b" in drawn
