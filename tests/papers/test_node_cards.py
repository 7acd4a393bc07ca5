"""Cards of machines on paper: thresholds as fixed, rows that count what they say."""

from __future__ import annotations

import pytest

from paredown.papers.cards import nodes
from paredown.papers.cards.nodes import DeepSeekHardwareCard


def test_deepseek_thresholds_are_those_of_the_entry() -> None:
    t = DeepSeekHardwareCard.thresholds
    assert (t["kv_bytes_off"], t["gain_of_second_token"], t["absorbed_off_naive"]) == (0, 1.8, 1e-4)


def test_deepseek_rows_hold_the_printed_figures() -> None:
    off = {r["model"]: abs(r["off"]) for r in nodes.flop_rows()}
    assert sorted(n for n in off if off[n] > 0.02) == ["qwen2.5-72b"]
    assert all(r["off"] < 5e-4 for r in nodes.time_rows())
    assert nodes.absorbed_off(1) < 1e-5


def test_log_levels_are_closer_than_fp8_on_normal_numbers() -> None:
    row = nodes.format_rows(0)[0]
    assert row["kind"] == "normal"
    assert row["logfmt10"] < row["logfmt8"] < row["e4m3"] < row["e5m2"]


def test_outliers_hurt_one_scale_only_when_they_are_far_out() -> None:
    gain = {r["factor"]: r["gain"] for r in nodes.outlier_rows(0)}
    assert gain[1.0] == pytest.approx(1, abs=0.05)
    assert gain[1e5] > 2
