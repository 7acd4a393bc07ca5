"""Device files: the catalogue is sound, and every bad figure is named with its line."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paredown import device
from paredown.device import Device, Level
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
    for group in ("peak_macs_s", "levels", "overhead_s"):
        assert len(found.sources[group]) > 10
    first = (CATALOGUE / f"{name}.toml").read_text().splitlines()[0]
    assert first.startswith("# ")


def test_narrow_types_are_never_slower() -> None:
    for name in device.names()[1:]:
        peaks = device.load(name).peak_macs_s
        assert peaks.get("int8", peaks["float32"]) >= peaks["float32"]


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
