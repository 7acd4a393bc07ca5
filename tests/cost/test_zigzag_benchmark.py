"""What `benchmarks/zigzag.py` asks of its peer and makes of its answers; the peer takes no part."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from paredown.cost.systolic import Layer

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import zigzag  # noqa: E402
from zigzag import MACHINES, Work  # noqa: E402


def conv(inputs: int, outputs: int, kernel: int, out: int, groups: int = 1) -> Layer:
    weights = 2 * groups * inputs * outputs * kernel * kernel
    return Layer(
        "conv", 1, groups, inputs, outputs, (kernel, kernel), (out, out), weights,
        2 * groups * inputs * out * out, 2 * groups * outputs * out * out,
    )  # fmt: skip


LAYERS = (
    conv(64, 64, 3, 56), conv(3, 64, 7, 112), conv(1, 1, 3, 14, 96), conv(24, 144, 1, 28),
    conv(512, 512, 3, 7), conv(1280, 1000, 1, 1),
)  # fmt: skip


def product_of(loops: list[str]) -> int:
    return math.prod(int(x.partition(", ")[2]) for x in loops)


@pytest.mark.parametrize("name", MACHINES)
def test_a_spatial_mapping_fits_the_array_and_the_layer(name: str) -> None:
    machine = MACHINES[name]()
    for layer in LAYERS:
        found = machine.spatial(layer)
        assert product_of(found["D1"]) <= machine.rows
        assert product_of(found["D2"]) <= machine.columns
        sizes = {"C": layer.inputs, "K": layer.outputs, "FY": layer.kernel[0]}
        sizes |= {"FX": layer.kernel[1], "OX": layer.out[1]}
        for loop in (*found["D1"], *found["D2"]):
            dimension, count = loop.split(", ")
            assert dimension == "OY" or int(count) <= sizes[dimension]


def test_a_window_lies_on_the_rows_in_the_fewest_whole_folds() -> None:
    assert zigzag.packed(conv(64, 64, 3, 56), 16) == ["C, 16"]
    assert zigzag.packed(conv(1, 1, 3, 14, 96), 16) == ["FY, 3", "FX, 3"]
    assert product_of(zigzag.packed(conv(3, 64, 7, 112), 16)) == 14
    assert zigzag.packed(conv(1, 8, 1, 14), 16) == ["K, 1"]


def test_computing_cycles_of_a_row_stationary_array_are_its_unrolled_loops() -> None:
    # ZigZag's cycles without stalls are what the spatial loops leave of the layer's.
    machine = MACHINES["eyeriss"]()
    for layer in (conv(64, 64, 3, 56), conv(128, 128, 3, 28)):
        spatial = machine.spatial(layer)
        units = product_of(spatial["D1"]) * product_of(spatial["D2"])
        assert machine.ours(layer)["computing"] == layer.macs / units


def test_a_memory_costs_per_number_whatever_its_width() -> None:
    found = zigzag.Memory("buffer", 8192, 128, 6.0, "WIO").described(16)
    assert found["r_cost"] == found["w_cost"] == 6.0 * 128 / 16
    ways = [a for p in found["ports"] for a in p["allocation"]]
    assert sorted(ways) == sorted(
        ["I2, tl", "I2, fh", "I1, tl", "I1, fh", "O, tl", "O, th", "O, fh", "O, fl"]
    )
    single = zigzag.Memory("memory", 8192, 128, 6.0, "WIO", ports=1).described(16)
    assert [p["type"] for p in single["ports"]] == ["read_write"]


def test_a_layer_is_described_with_its_padding_and_input() -> None:
    work = Work(conv(64, 64, 3, 28), (56, 56), (2, 2), (1, 1))
    found = work.described(8, 32)
    sizes = dict(zip(found["loop_dims"], found["loop_sizes"], strict=True))
    assert math.prod(sizes.values()) == work.layer.macs
    assert found["dimension_relations"] == ["ix=2*ox+1*fx", "iy=2*oy+1*fy"]
    assert (found["pr_loop_sizes"], found["padding"]) == ([56, 56], [[1, 1], [1, 1]])
    assert found["operand_precision"]["O"] == 32


def answer(energy: float, cycles: float) -> dict[str, Any]:
    """As the peer gives it: 16 weights of 16 bits from memory, 4 results back."""
    return {
        "energy": energy, "mac_energy": 64.0, "cycles": cycles, "computing": 4.0, "stalls": 1.0,
        "loading": 2.0, "unloading": 1.0, "drain": 0.0, "loops": "",
        "bits": {
            "W@memory": {"rd_out_to_low": 256.0},
            "W@buffer": {"wr_in_by_high": 256.0, "rd_out_to_low": 512.0},
            "W@filters": {"wr_in_by_high": 512.0, "rd_out_to_low": 1024.0},
            "O@memory": {"wr_in_by_low": 64.0},
            "O@buffer": {"wr_in_by_low": 64.0, "rd_out_to_high": 64.0},
        },
    }  # fmt: skip


def test_answers_are_counted_in_bytes_and_energy_by_memory() -> None:
    machine = MACHINES["eyeriss"]()
    found = zigzag.theirs([answer(1.0, 9.0), answer(2.0, 8.0)], machine)
    assert found["memory_bytes"] == {"W": 32.0, "O": 8.0}
    assert found["buffer_bytes"] == {"W": 64.0, "O": 8.0}
    numbers = {"memory": 16 + 4, "buffer": 16 + 32 + 4 + 4, "elements": 32 + 64}
    assert found["energy"] == {
        "arithmetic": 64.0, "elements": 1.0 * numbers["elements"],
        "buffer": 6.0 * numbers["buffer"], "memory": 200.0 * numbers["memory"],
    }  # fmt: skip
    assert found["least_latency"]["cycles"] == 8.0


def test_a_network_is_the_sum_of_its_layers_as_often_as_they_occur() -> None:
    machine = MACHINES["eyeriss"]()
    peer = zigzag.theirs([answer(1.0, 9.0), answer(2.0, 8.0)], machine)
    rows = [
        {"machine": "m", "network": "n", "count": c, "ours": machine.ours(x), "zigzag": peer}
        for c, x in ((2, LAYERS[0]), (3, LAYERS[3]))
    ]
    (found,) = zigzag.summary(rows)
    assert (found["layers"], found["different"]) == (5, 2)
    cycles = found["figures"]["cycles"]
    assert cycles["zigzag"] == 5 * 8.0
    first, second = (r["ours"]["cycles"] for r in rows)
    assert cycles["ours"] == 2 * first + 3 * second
    assert cycles["over"] == cycles["ours"] / cycles["zigzag"]
    assert (cycles["least"], cycles["most"]) == tuple(sorted((first / 8.0, second / 8.0)))


def test_the_committed_energies_are_those_that_the_peer_added_up() -> None:
    doc = json.loads(zigzag.RESULTS.read_text())
    assert {r["machine"] for r in doc["rows"]} == set(MACHINES)
    for row in doc["rows"]:
        said = row["zigzag"]["energy_said"]
        assert sum(row["zigzag"]["energy"].values()) == pytest.approx(said, rel=1e-6)
        assert row["zigzag"]["energy"]["arithmetic"] == row["macs"]
