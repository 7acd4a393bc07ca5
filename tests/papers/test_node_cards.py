"""Cards of machines on paper: thresholds as fixed, rows that count what they say."""

from __future__ import annotations

import pytest

from paredown.cost.reconfigure import Machine, hybrid, sequential
from paredown.papers.cards import arrays, fpga, nodes, offloading, serving, three_tiers
from paredown.papers.cards.arrays import DracoCard
from paredown.papers.cards.fpga import InTARCard
from paredown.papers.cards.nodes import DeepSeekHardwareCard
from paredown.papers.cards.offloading import AttentionOffloadCard
from paredown.papers.cards.serving import DeepSpeedCard
from paredown.papers.cards.three_tiers import SN40LCard


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


def test_other_thresholds_are_those_of_the_entries() -> None:
    assert SN40LCard.thresholds["overall_speedup_off"] == 0.3
    assert DeepSpeedCard.thresholds["table_over_one_hot"] == 3
    assert DeepSpeedCard.thresholds["larger_models"] == 25
    assert AttentionOffloadCard.thresholds["least_gain_at_long_contexts"] == 1.4
    assert AttentionOffloadCard.thresholds["most_bytes_s_per_device"] == 400e9 / 8
    assert DracoCard.thresholds["gain_in_utilisation_at_64"] == 0.4
    assert DracoCard.thresholds["cut_of_latency_at_64"] == 0.3


def test_longer_answers_bring_the_nodes_closer() -> None:
    short, long = (three_tiers.overall_row("dgx-h100", n) for n in (20, 200))
    assert short["speedup"] > long["speedup"] > 1
    assert 0.6 < short["miss_share"] < 0.8


def test_rows_of_streams_and_splits_are_whole() -> None:
    row = serving.streaming_row("lm-530b")
    assert row["level"] == "NVMe"
    assert 0.5 < row["share"] <= 1
    rows = serving.split_rows("lm-175b", 1)
    assert [r["tensor"] for r in rows] == [8, 4, 2, 1]
    assert rows[0]["token_s"] == min(r["token_s"] for r in rows)
    assert serving.differing() == 0


def test_offloading_rows_weigh_both_kinds() -> None:
    row = offloading.plan_row("llama-3-70b", "h20", 16384)
    assert row["gain"] > 1
    assert row["compute_devices"] * 80e9 > 2 * 70.5e9
    assert offloading.exchange_off("llama-65b") == 0


def test_mobilenet_v1_has_its_published_work() -> None:
    plain = arrays.network()
    assert len(plain) == 28
    assert sum(x.macs for x in plain) / arrays.BATCH == pytest.approx(569e6, rel=0.01)
    assert sum(x.weight_bytes for x in plain) / 2 == pytest.approx(4.2e6, rel=0.01)
    assert arrays.row(plain, 64, 1)["gain"] == 0


def test_kernels_have_the_work_of_their_shapes() -> None:
    assert InTARCard.thresholds["plans_off_brute_force"] == 0
    macs = {name: sum(t.macs for t in tasks) for name, tasks in fpga.KERNELS.items()}
    assert macs["gated FFN"] == 3 * 32 * 4096 * 11008
    assert macs["attention"] == 3 * 256 * 1024**2 + 2 * 256**2 * 1024
    assert macs["MLP"] == 256 * (256 * 1024 + 1024 * 2048 + 2048 * 256)
    for tasks in fpga.KERNELS.values():
        assert all(t.until > i or not t.makes for i, t in enumerate(tasks))
    assert not fpga.off_brute_force(3)
    less = fpga.row("CNN", 256 << 10)
    assert min(less["over_sequential"], less["over_dataflow"]) >= 1
    # Behind a slow memory it is what leaves the chip that counts.
    slow = Machine(2.7e12, 256 << 10, 1e10)
    cnn = fpga.KERNELS["CNN"]
    assert sequential(cnn, slow).seconds > 1.5 * hybrid(cnn, slow).seconds
