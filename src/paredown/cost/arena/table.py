"""Buffers as CSV: ``id,lower,upper,size`` in, the same with ``offset`` out."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from pathlib import Path

from paredown.cost.arena.problem import Buffer
from paredown.errors import InputError

COLUMNS = ("id", "lower", "upper", "size")
NUMBERS = COLUMNS[1:]


def read(path: str | Path) -> list[Buffer]:
    """Buffers of a CSV file, columns in any order.

    Raises ``InputError`` naming file, line and column for anything missing, doubled, not a whole
    number, or for a buffer that lives in no step.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as e:
        raise InputError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    rows = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(rows, [])]
    if sorted(header) != sorted(COLUMNS):
        found = ",".join(header) or "nothing"
        raise InputError(f"{path}:1: the columns are {','.join(COLUMNS)}, found {found}")
    buffers: list[Buffer] = []
    seen: dict[str, int] = {}
    for row in rows:
        if not any(field.strip() for field in row):
            continue
        where = f"{path}:{rows.line_num}"
        if len(row) != len(header):
            raise InputError(f"{where}: {len(row)} fields, expected {len(header)}")
        fields = dict(zip(header, (field.strip() for field in row), strict=True))
        buffer = _buffer(fields, where)
        if buffer.id in seen:
            raise InputError(f"{where}: id {buffer.id!r} stands already in line {seen[buffer.id]}")
        seen[buffer.id] = rows.line_num
        buffers.append(buffer)
    return buffers


def _buffer(fields: dict[str, str], where: str) -> Buffer:
    values: dict[str, int] = {}
    for name in NUMBERS:
        try:
            values[name] = int(fields[name])
        except ValueError:
            said = f"{name} is not a whole number: {fields[name]!r}"
            raise InputError(f"{where}: {said}") from None
    if not fields["id"]:
        raise InputError(f"{where}: the id is empty")
    if values["size"] < 0:
        raise InputError(f"{where}: size must not be negative, got {values['size']}")
    if values["upper"] <= values["lower"]:
        raise InputError(
            f"{where}: a buffer lives in steps lower <= t < upper, and "
            f"[{values['lower']}, {values['upper']}) holds none"
        )
    return Buffer(fields["id"], values["lower"], values["upper"], values["size"])


def rows_text(rows: Iterable[tuple[Buffer, int]]) -> str:
    """CSV text with offsets, ending in a line break."""
    out = io.StringIO(newline="")
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow((*COLUMNS, "offset"))
    for b, offset in rows:
        writer.writerow((b.id, b.lower, b.upper, b.size, offset))
    return out.getvalue()
