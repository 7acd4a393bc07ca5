"""The committed coverage table, and the run that makes it (slow)."""

import json
import sys
from pathlib import Path

import pytest

pytest.importorskip("transformers")
ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import hf_coverage  # noqa: E402

from paredown.device.device import Device, Level  # noqa: E402

TOY = Device(
    name="toy",
    title="toy",
    threads=1,
    how="nominal",
    peak_macs_s={"float32": 1e11},
    elementwise_s=1e10,
    overhead_s={},
    levels=(Level(name="memory", capacity_bytes=1 << 40, read_bytes_s=1e10),),
)


def test_the_committed_table_covers_what_is_promised():
    table = json.loads(hf_coverage.RESULTS.read_text())
    rows = table["networks"]
    good = [n for n, r in rows.items() if hf_coverage._good(r)]
    assert len(good) == len(rows) >= 25
    families = {r["family"] for r in rows.values()}
    assert {
        "image",
        "detection",
        "segmentation",
        "encoder",
        "decoder",
        "encoder-decoder",
        "audio",
        "state space",
        "mixture of experts",
        "contrastive",
    } <= families
    assert set(rows) == set(hf_coverage.networks())


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(hf_coverage.networks()))
def test_a_published_architecture_is_priced(name):
    _, make = hf_coverage.networks()[name]
    row = hf_coverage.profile_one(make(), TOY)
    assert hf_coverage._good(row), row["unpriced"]
    assert row["macs"] > 0
