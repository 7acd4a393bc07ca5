"""Device files: read, checked to the line, written. The catalogue holds one TOML file per device.

``this`` is the machine paredown runs on: no file, but what ``measure.calibrate`` measured.
"""

from __future__ import annotations

import importlib
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from paredown.device.device import Device
from paredown.errors import DeviceError, UnknownName

CATALOGUE = Path(__file__).with_name("catalogue")
THIS = "this"

FLOATS = ("float64", "float32", "tfloat32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
DTYPES = frozenset([*FLOATS, "int16", "int8", "int4"])
"""Names that ``peak_macs_s`` and ``energy_j_per_mac`` may use."""

# What measures `this` stands in a layer above this one, hence the string.
_MEASURES_THIS = ("paredown.measure.calibrate", "this")


def names() -> list[str]:
    """Every device known by name: ``this``, then the catalogue in alphabetical order."""
    return [THIS, *sorted(p.stem for p in CATALOGUE.glob("*.toml"))]


def load(name_or_path: str | Path) -> Device:
    """A device by name (``this``: calibrated now or earlier), or from a ``.toml`` file.

    Raises ``UnknownName`` for a name that is neither, ``DeviceError`` naming file and line for a
    missing, negative or inconsistent figure.
    """
    text = str(name_or_path)
    if text == THIS:
        module, function = _MEASURES_THIS
        return getattr(importlib.import_module(module), function)()
    path = CATALOGUE / f"{text}.toml"
    if not path.is_file():
        path = Path(text)
        if path.suffix != ".toml":
            raise UnknownName("device", text, names())
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as e:
        why = (e.strerror or str(e)).lower()
        raise DeviceError(f"cannot read device file {path}: {why}") from None
    except UnicodeDecodeError:
        raise DeviceError(f"{path}: not a text file in UTF-8") from None
    return loads(source, where=str(path))


def loads(source: str, *, where: str = "device") -> Device:
    """A device from TOML text; ``where`` names it in errors, which give the line."""
    try:
        data = tomllib.loads(source)
    except tomllib.TOMLDecodeError as e:
        raise DeviceError(f"{where}: not valid TOML: {e}") from None
    try:
        device = Device.model_validate(data)
    except ValidationError as e:
        # A mistyped key also leaves its figure missing: the typo is what the user can see.
        first = min(e.errors(), key=lambda error: error["type"] != "extra_forbidden")
        keys = tuple(first["loc"])
        name = ".".join(str(k) for k in keys)
        raise DeviceError(f"{where}:{line_of(source, keys)}: {name}: {_words(first)}") from None
    for keys, why in problems(device):
        name = ".".join(str(k) for k in keys)
        raise DeviceError(f"{where}:{line_of(source, keys)}: {name}: {why}")
    return device


def _words(error: Any) -> str:
    if error["type"] == "missing":
        return "missing figure"
    if error["type"] == "extra_forbidden":
        return "unknown key"
    return f"{error['msg'].lower()}, got {error['input']!r}"


Keys = tuple[str | int, ...]


def problems(device: Device) -> Iterator[tuple[Keys, str]]:
    """What is inconsistent in a device: ``(keys of the figure, what is wrong with it)``."""
    if not device.name:
        yield ("name",), "empty"
    if device.how not in ("measured", "nominal"):
        yield ("how",), f"{device.how!r} is neither 'measured' nor 'nominal'"
    if device.threads < 1:
        yield ("threads",), f"at least 1, got {device.threads}"
    if device.count < 1:
        yield ("count",), f"at least 1, got {device.count}"
    if device.reconfigure_s is not None and not _positive(device.reconfigure_s):
        yield ("reconfigure_s",), f"must be above 0, got {device.reconfigure_s}"
    yield from _rates(device)
    yield from _array(device)
    yield from _levels(device)
    for i, link in enumerate(device.links):
        if not _positive(link.bytes_s):
            yield ("links", i, "bytes_s"), f"must be above 0, got {link.bytes_s}"
        if not link.latency_s >= 0:
            yield ("links", i, "latency_s"), f"must not be negative, got {link.latency_s}"
    if device.how == "nominal":
        # The catalogue's test asks for the source of every group; a user's own file for these two.
        for group in ("peak_macs_s", "levels"):
            if not device.sources.get(group, "").strip():
                yield ("sources",), f"a nominal device names the source of {group}: sources.{group}"


def _rates(device: Device) -> Iterator[tuple[Keys, str]]:
    if not device.peak_macs_s:
        yield ("peak_macs_s",), "at least one dtype is needed"
    for table, values in (
        ("peak_macs_s", device.peak_macs_s),
        ("energy_j_per_mac", device.energy_j_per_mac),
    ):
        for dtype, value in values.items():
            if dtype not in DTYPES:
                yield (table, dtype), f"unknown dtype; known: {', '.join(sorted(DTYPES))}"
            if not _positive(value):
                yield (table, dtype), f"must be above 0, got {value}"
    if not _positive(device.elementwise_s):
        yield ("elementwise_s",), f"must be above 0, got {device.elementwise_s}"
    for backend, seconds in device.overhead_s.items():
        if not (math.isfinite(seconds) and seconds >= 0):
            yield ("overhead_s", backend), f"must not be negative, got {seconds}"
    if device.idle_w is not None and not device.idle_w >= 0:
        yield ("idle_w",), f"must not be negative, got {device.idle_w}"
    if device.price_usd is not None and not _positive(device.price_usd):
        yield ("price_usd",), f"must be above 0, got {device.price_usd}"
    for key, share in device.efficiency.items():
        if not 0 < share <= 1:
            yield ("efficiency", key), f"a share lies in (0, 1], got {share}"


def _array(device: Device) -> Iterator[tuple[Keys, str]]:
    grid = device.array
    if grid is None:
        if device.kind == "systolic":
            yield ("kind",), "a systolic device states its array: rows, columns, clock_hz, dataflow"
        return
    for field in ("rows", "columns", "clock_hz"):
        if not _positive(getattr(grid, field)):
            yield ("array", field), f"must be above 0, got {getattr(grid, field)}"
            return
    most = grid.rows * grid.columns * grid.clock_hz * device.count
    for dtype, rate in device.peak_macs_s.items():
        if rate > 1.01 * most:
            why = f"{rate:.4g} MAC/s is more than rows x columns x clock = {most:.4g}"
            yield ("peak_macs_s", dtype), why


def _levels(device: Device) -> Iterator[tuple[Keys, str]]:
    if not device.levels:
        yield ("levels",), "at least one memory level is needed"
    for i, level in enumerate(device.levels):
        if level.capacity_bytes < 1:
            yield ("levels", i, "capacity_bytes"), f"must be above 0, got {level.capacity_bytes}"
        for field in ("read_bytes_s", "write_bytes_s", "energy_j_per_byte"):
            value: float | None = getattr(level, field)
            if value is not None and not _positive(value):
                yield ("levels", i, field), f"must be above 0, got {value}"
        if i == 0:
            continue
        nearer = device.levels[i - 1]
        if nearer.holds == "weights":
            yield (
                ("levels", i, "name"),
                f"only the last level may hold weights alone: {nearer.name}",
            )
        if level.capacity_bytes <= nearer.capacity_bytes:
            yield (
                ("levels", i, "capacity_bytes"),
                f"{level.name} holds no more than the nearer {nearer.name} (nearest level first)",
            )
        if level.read_bytes_s > nearer.read_bytes_s:
            yield (
                ("levels", i, "read_bytes_s"),
                f"{level.name} reads faster than the nearer {nearer.name} (nearest level first)",
            )


def _positive(value: float) -> bool:
    return math.isfinite(value) and value > 0


def line_of(source: str, keys: Keys) -> int:
    """The line (from 1) where a key stands in TOML text, or that of its table, or 1.

    An index into an array of tables picks the table; keys of tables are found under their header.
    """
    lines = source.splitlines()
    line, start = 1, 0
    for depth, key in enumerate(keys):
        if isinstance(key, int):
            header = re.compile(rf"\s*\[\[\s*{re.escape(str(keys[depth - 1]))}\s*\]\]")
            at = [i for i, text in enumerate(lines) if header.match(text)]
            if key < len(at):
                line, start = at[key] + 1, at[key] + 1
            continue
        quoted = rf"[\"']?{re.escape(key)}[\"']?"
        found = re.compile(rf"\s*(\[+\s*{quoted}\s*\]+|{quoted}\s*=)")
        for i in range(start, len(lines)):
            if found.match(lines[i]):
                line, start = i + 1, i + 1
                break
            if depth > 0 and re.match(r"\s*\[", lines[i]):
                break  # the next table: the key is missing from this one
    return line


def dumps(device: Device) -> str:
    """A device as TOML text, with figures to six digits: ``loads(dumps(d))`` is ``d`` to that."""
    data = device.model_dump(exclude_none=True)
    tables = {k: data.pop(k) for k in list(data) if isinstance(data[k], dict)}
    arrays = {k: data.pop(k) for k in ("levels", "links")}
    out = [f"{k} = {_toml(v)}" for k, v in data.items()]
    for name, table in tables.items():
        if table:
            out += ["", f"[{name}]", *(f"{_key(k)} = {_toml(v)}" for k, v in table.items())]
    for name, rows in arrays.items():
        for row in rows:
            out += ["", f"[[{name}]]", *(f"{k} = {_toml(v)}" for k, v in row.items())]
    return "\n".join(out) + "\n"


def _key(key: str) -> str:
    return key if re.fullmatch(r"[A-Za-z0-9_-]+", key) else _toml(key)


def _toml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        text = f"{value:.6g}"
        return text if re.search(r"[.e]", text) else text + ".0"
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(v) for v in value) + "]"
    text = str(value).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{text}"'
