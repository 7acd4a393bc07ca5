"""Device files: the catalogue is sound, and every bad figure is named with its line."""

from __future__ import annotations

import re
from pathlib import Path
from typing import get_args

import pytest

from paredown import device
from paredown.device import Device, Level
from paredown.device.device import Kind
from paredown.device.files import CATALOGUE, line_of, problems
from paredown.errors import DeviceError, UnknownName

GOOD = """name = "box"
title = "A box"
threads = 2
how = "nominal"
elementwise_s = 1e9

[peak_macs_s]
float32 = 2e9
int8 = 8e9

[overhead_s]
eager = 1e-6

[[levels]]
name = "cache"
capacity_bytes = 1024
read_bytes_s = 4e9

[[levels]]
name = "memory"
capacity_bytes = 1048576
read_bytes_s = 1e9

[sources]
peak_macs_s = "made up"
levels = "made up"
"""
ARRAY = """[array]
rows = 2
columns = 2
clock_hz = 1e9
dataflow = "row"

[overhead_s]"""


def test_names_begin_with_this_and_list_the_catalogue() -> None:
    names = device.names()
    assert names[0] == "this"
    assert {"pi5", "h100-sxm", "stm32f746", "xeon-8480", "ryzen-7840u"} <= set(names)


@pytest.mark.parametrize("name", [n for n in device.names() if n != "this"])
def test_catalogue_is_sound_and_sourced(name: str) -> None:
    found = device.load(name)
    assert found.name == name
    assert found.how == "nominal"
    assert list(problems(found)) == []
    plain = {"name", "title", "threads", "how", "kind", "count", "isa", "sources"}
    for group in set(found.model_dump(exclude_defaults=True)) - plain:
        assert len(found.sources[group]) > 10, group
    first = (CATALOGUE / f"{name}.toml").read_text().splitlines()[0]
    assert first.startswith("# ")


def test_narrow_types_are_never_slower() -> None:
    for name in device.names()[1:]:
        peaks = device.load(name).peak_macs_s
        order = [t for t in ("float32", "int16", "int8", "int4") if t in peaks]
        assert sorted(order, key=lambda t: peaks[t]) == order


def test_the_catalogue_holds_every_kind_of_machine() -> None:
    found = [device.load(n) for n in device.names()[1:]]
    assert len(found) >= 16
    assert {d.kind for d in found} == set(get_args(Kind))
    for d in found:
        flash = [lv.name for lv in d.levels if lv.holds == "weights"]
        assert flash == (["flash"] if d.kind == "microcontroller" else [])
        assert (d.count > 1) == (d.name in ("dgx-a100", "dgx-h100", "deepseek-v3-hw", "sn40l"))
    tiers = device.load("sn40l").levels
    assert [lv.name for lv in tiers] == ["SRAM", "HBM", "DDR"]


def test_the_docs_list_every_device() -> None:
    page = (Path(__file__).parents[2] / "docs" / "devices.md").read_text()
    listed = re.findall(r"^\| `([a-z0-9-]+)` \|", page, re.MULTILINE)
    assert listed == device.names()[1:]


def test_arrays_multiply_to_their_peak() -> None:
    tpu = device.load("tpu-v1")
    assert tpu.array is not None
    assert tpu.peak_macs_s["int8"] == tpu.array.rows * tpu.array.columns * tpu.array.clock_hz
    assert 2 * tpu.peak_macs_s["int8"] == pytest.approx(92e12, rel=0.01)  # the paper's 92 TOPS
    for name in ("eyeriss", "gemmini"):
        grid = device.load(name).array
        assert grid is not None
        assert max(device.load(name).peak_macs_s.values()) == pytest.approx(
            grid.rows * grid.columns * grid.clock_hz
        )


def test_switching_models_from_ddr_is_31_and_15_times_faster_than_over_pcie() -> None:
    # The published ratios of the SN40L node to a DGX A100 and a DGX H100.
    ddr = device.load("sn40l").memory.read_bytes_s
    assert ddr / device.load("dgx-a100").memory.read_bytes_s == pytest.approx(31, rel=0.05)
    assert ddr / device.load("dgx-h100").memory.read_bytes_s == pytest.approx(15.6, rel=0.05)


def test_pi5_peak_is_its_hand_count() -> None:
    assert device.load("pi5").peak("float32").value == pytest.approx(4 * 2.4e9 * 2 * 4)
    assert device.load("pi5").peak("bfloat16").how == "unavailable"


def test_written_and_read_back(tmp_path: Path) -> None:
    for name in device.names()[1:]:
        found = device.load(name)
        path = tmp_path / f"{name}.toml"
        path.write_text(device.dumps(found))
        assert device.load(path) == found
    odd = device.loads(GOOD).model_copy(
        update={"title": 'a "quoted"\\ two\nlines', "efficiency": {"eager/conv/float32": 0.25}}
    )
    assert device.loads(device.dumps(odd)) == odd


def test_unknown_name_suggests_the_near_one(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="did you mean pi5"):
        device.load("pi4")
    with pytest.raises(DeviceError, match="no such file"):
        device.load(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    ("change", "line", "words"),
    [
        (("threads = 2\n", ""), 1, "threads: missing figure"),
        (("threads = 2", "threads = 0"), 3, "threads: at least 1"),
        (('how = "nominal"', 'how = "guessed"'), 4, "neither 'measured' nor 'nominal'"),
        (("elementwise_s = 1e9", "elementwise_s = -1e9"), 5, "must be above 0"),
        (("float32 = 2e9", "float32 = -2e9"), 8, "peak_macs_s.float32: must be above 0, got -2"),
        (("float32 = 2e9", "float32 = nan"), 8, "must be above 0, got nan"),
        (("float32 = 2e9", 'float32 = "fast"'), 8, "peak_macs_s.float32: .*fast"),
        (("int8 = 8e9", "int7 = 8e9"), 9, "peak_macs_s.int7: unknown dtype"),
        (("eager = 1e-6", "eager = -1e-6"), 12, "overhead_s.eager: must not be negative"),
        (("capacity_bytes = 1024", "capacity_bytes = 0"), 16, "must be above 0, got 0"),
        (("capacity_bytes = 1024\n", ""), 14, "levels.0.capacity_bytes: missing figure"),
        (("capacity_bytes = 1048576", "capacity_bytes = 512"), 21, "no more than the nearer cache"),
        (("read_bytes_s = 1e9", "read_bytes_s = 9e9"), 22, "faster than the nearer cache"),
        (("read_bytes_s = 1e9", "read_bytes = 1e9"), 22, "levels.1.read_bytes: unknown key"),
        (('levels = "made up"', ""), 24, "names the source of levels"),
        (('levels = "made up"', 'levels = " "'), 24, "names the source of levels"),
        (("threads = 2", "threads = 2\ncount = 0"), 4, "count: at least 1, got 0"),
        (("threads = 2", 'threads = 2\nkind = "toaster"'), 4, "kind: input should be"),
        (("threads = 2", 'threads = 2\nkind = "systolic"'), 4, "states its array"),
        (("threads = 2", "threads = 2\nreconfigure_s = -1.0"), 4, "reconfigure_s: must be above 0"),
        (('name = "cache"', 'name = "cache"\nholds = "weights"'), 21, "only the last level may"),
        (("[overhead_s]", ARRAY), 9, "8e.09 MAC/s is more than rows x columns"),
    ],
)
def test_bad_figures_are_named_with_their_line(
    tmp_path: Path, change: tuple[str, str], line: int, words: str
) -> None:
    assert change[0] in GOOD
    path = tmp_path / "box.toml"
    path.write_text(GOOD.replace(*change, 1))
    with pytest.raises(DeviceError) as e:
        device.load(path)
    text = str(e.value)
    assert re.search(words, text), text
    where = re.match(rf"{re.escape(str(path))}:(\d+): ", text)
    assert where, text
    # A missing key has no line of its own: its table's stands for it.
    assert int(where[1]) == line, text


def test_broken_toml_is_one_line(tmp_path: Path) -> None:
    path = tmp_path / "box.toml"
    path.write_text("name = ")
    with pytest.raises(DeviceError, match="not valid TOML") as e:
        device.load(path)
    assert "\n" not in str(e.value)


def test_lines_are_found_in_tables_of_one_key_name() -> None:
    lines = GOOD.splitlines()
    assert "1024" in lines[line_of(GOOD, ("levels", 0, "capacity_bytes")) - 1]
    assert "1048576" in lines[line_of(GOOD, ("levels", 1, "capacity_bytes")) - 1]
    assert "2e9" in lines[line_of(GOOD, ("peak_macs_s", "float32")) - 1]


def test_a_share_above_one_is_inconsistent() -> None:
    made = Device(
        name="x", title="x", threads=1, how="measured", peak_macs_s={"float32": 1.0},
        elementwise_s=1.0, overhead_s={}, efficiency={"eager/conv/float32": 1.5},
        levels=(Level(name="memory", capacity_bytes=1, read_bytes_s=1.0),),
    )  # fmt: skip
    assert [keys for keys, _ in problems(made)] == [("efficiency", "eager/conv/float32")]
