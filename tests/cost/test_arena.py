"""Arenas: the optimum equals brute force and HiGHS, hard instances, `pare plan memory`."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
from pathlib import Path

import pytest

from paredown.cli import main
from paredown.cost.arena import Buffer, Problem, greedy, milp, overlaps, peak_step, place
from paredown.cost.arena.search import PREFERENCES, OutOfBudget, Search
from paredown.errors import InputError


def packed(n: int, steps: int, height: int, seed: int) -> list[Buffer]:
    """A rectangle of steps x bytes cut into ``n`` buffers: full at each step, so load = optimum."""
    r = random.Random(seed)
    pieces = [(0, steps, 0, height)]
    while len(pieces) < n:
        i = max(
            range(len(pieces)),
            key=lambda i: (
                (pieces[i][1] - pieces[i][0]) * (pieces[i][3] - pieces[i][2]) * r.random()
            ),
        )
        a, b, low, high = pieces[i]
        if r.random() < 0.5 and b - a > 1:
            cut = r.randint(a + 1, b - 1)
            pieces[i : i + 1] = [(a, cut, low, high), (cut, b, low, high)]
        elif high - low > 1:
            cut = r.randint(low + 1, high - 1)
            pieces[i : i + 1] = [(a, b, low, cut), (a, b, cut, high)]
    r.shuffle(pieces)
    return [Buffer(f"b{i}", a, b, high - low) for i, (a, b, low, high) in enumerate(pieces)]


def scattered(n: int, steps: int, most: int, seed: int) -> list[Buffer]:
    r = random.Random(seed)
    starts = [r.randrange(steps) for _ in range(n)]
    return [
        Buffer(f"b{i}", a, r.randint(a + 1, steps), r.randint(1, most))
        for i, a in enumerate(starts)
    ]


def by_brute_force(buffers: list[Buffer]) -> int:
    """The lowest height over every order of placing each buffer in its lowest gap."""
    p = Problem(buffers)
    orders = itertools.permutations(range(len(buffers)))
    return min(p.height(greedy.fill(p, order)) for order in orders)


def buffers_of(rows: list[tuple[int, int, int]]) -> list[Buffer]:
    return [Buffer(f"b{i}", *row) for i, row in enumerate(rows)]


# Full at each step, with an optimum above the bytes alive at once (found by random search).
GAPS = {
    "6 to 7": [
        (0, 1, 3), (1, 2, 2), (2, 3, 1), (0, 3, 2), (1, 4, 1), (4, 5, 1), (3, 5, 3), (0, 5, 1),
        (2, 6, 1), (5, 7, 5), (6, 7, 1),
    ],
    "7 to 8": [
        (0, 1, 3), (1, 2, 2), (1, 2, 1), (0, 3, 4), (3, 4, 2), (2, 4, 1), (3, 5, 2), (5, 6, 2),
        (2, 6, 2), (4, 7, 3), (6, 7, 3), (6, 7, 1),
    ],
}  # fmt: skip


@pytest.mark.parametrize("seed", range(12))
def test_the_optimum_is_that_of_brute_force_and_of_the_integer_program(seed: int) -> None:
    buffers = scattered(6, 7, 5, seed)
    found = place(buffers)
    assert found.how == "optimal"
    assert not overlaps(buffers, found.offsets)
    assert found.height == found.bound == by_brute_force(buffers)
    p = Problem(buffers)
    offsets, bound = milp.solve(p, sum(p.size), p.load, 20)
    assert offsets is not None
    assert p.height(offsets) == bound == found.height


@pytest.mark.parametrize("name", GAPS)
def test_an_optimum_above_the_load_is_proven_by_both_ways(name: str) -> None:
    load, optimum = (int(x) for x in name.split(" to "))
    buffers = buffers_of(GAPS[name])
    found = place(buffers)
    assert (found.load, found.height, found.bound, found.how) == (load, optimum, optimum, "optimal")
    assert found.proof != "the bytes alive at once"
    assert not overlaps(buffers, found.offsets)
    p = Problem(buffers)
    assert milp.solve(p, sum(p.size), p.load, 30)[1] == optimum
    assert place(buffers, capacity=load).how == "no room"
    assert place(buffers, capacity=optimum).height == optimum


@pytest.mark.parametrize("prefer", PREFERENCES)
def test_every_preference_finds_the_packed_rectangle(prefer: str) -> None:
    buffers = packed(24, 24, 1000, 2)
    search = Search(Problem(buffers), 1000, nodes=20_000, prefer=prefer)
    found = search.run(range(24))
    assert found is not None
    assert not overlaps(buffers, {f"b{i}": found[i] for i in found})
    assert Problem(buffers).height([found[i] for i in range(24)]) == 1000
    assert Search(Problem(buffers), 999, nodes=10).run(range(24)) is None


def test_a_search_without_budget_says_so() -> None:
    with pytest.raises(OutOfBudget):
        Search(Problem(packed(60, 60, 1000, 0)), 1000, nodes=3).run(range(60))


@pytest.mark.parametrize("seed", range(4))
def test_packed_rectangles_are_closed_where_greedy_by_size_is_not(seed: int) -> None:
    buffers = packed(40, 40, 4096, seed)
    found = place(buffers, seconds=60)
    assert found.how == "optimal"
    assert found.height == found.load == 4096
    assert found.greedy_height >= found.height
    assert not overlaps(buffers, found.offsets)


@pytest.mark.parametrize("n", [1, 2, 3, 17, 63, 200])
def test_never_worse_than_greedy_by_size(n: int) -> None:
    buffers = scattered(n, 40, 1 << 20, n)
    found = place(buffers, exact=n < 100)
    p = Problem(buffers)
    assert found.greedy_height == p.height(greedy.by_size(p))
    assert found.load <= found.bound <= found.height <= found.greedy_height
    assert found.load == peak_step(buffers)[1]
    assert not overlaps(buffers, found.offsets)


def test_the_same_buffers_get_the_same_places() -> None:
    buffers = packed(40, 40, 4096, 1)
    assert place(buffers).offsets == place(list(buffers)).offsets


def test_parts_apart_in_time_are_placed_apart_and_empty_buffers_anywhere() -> None:
    first = buffers_of(GAPS["6 to 7"])
    later = [Buffer(f"c{i}", b.lower + 100, b.upper + 100, b.size) for i, b in enumerate(first)]
    nothing = Buffer("empty", 0, 200, 0)
    found = place([*first, *later, nothing])
    assert (found.height, found.how) == (7, "optimal")
    assert found.offsets["empty"] == 0
    assert place([]).height == 0


# ---------------------------------------------------------------- pare plan memory
EXAMPLE = "id,lower,upper,size\nb1,0,3,4\nb2,3,9,4\nb3,0,9,4\nb4,9,21,4\nb5,0,21,4\n"


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_plan_memory_writes_offsets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = tmp_path / "in.csv"
    given.write_text(EXAMPLE)
    assert main(["plan", "memory", str(given), "--capacity", "12"]) == 0
    said = capsys.readouterr()
    assert said.out.splitlines()[0] == "id,lower,upper,size,offset"
    rows = rows_of(said.out)
    assert [r["id"] for r in rows] == ["b1", "b2", "b3", "b4", "b5"]
    offsets = {r["id"]: int(r["offset"]) for r in rows}
    buffers = [Buffer(r["id"], int(r["lower"]), int(r["upper"]), int(r["size"])) for r in rows]
    assert not overlaps(buffers, offsets)
    assert max(offsets[b.id] + b.size for b in buffers) == 12
    assert "no arena is smaller" in said.err

    out, doc = tmp_path / "out.csv", tmp_path / "doc.json"
    asked = ["--capacity", "12", "--out", str(out), "--json", str(doc)]
    assert main(["plan", "memory", str(given), *asked]) == 0
    assert rows_of(out.read_text()) == rows
    assert json.loads(doc.read_text())["certificate"] == "optimal"


def test_no_room_exits_1_with_bytes_and_buffers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given, out = tmp_path / "in.csv", tmp_path / "out.csv"
    given.write_text(EXAMPLE)
    assert main(["plan", "memory", str(given), "--capacity", "11", "--out", str(out)]) == 1
    said = capsys.readouterr()
    assert said.out == ""
    assert "at least 12 B" in said.err
    assert "1 B more than the capacity" in said.err
    assert "b3 (4 B)" in said.err
    assert not out.exists()
    # Room by the bytes alive, none by exhaustive search.
    lines = [f"b{i},{a},{b},{s}" for i, (a, b, s) in enumerate(GAPS["6 to 7"])]
    given.write_text("\n".join(["id,lower,upper,size", *lines]))
    assert main(["plan", "memory", str(given), "--capacity", "6"]) == 1
    assert main(["plan", "memory", str(given), "--capacity", "7"]) == 0


def test_undecided_is_refused_not_guessed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "in.csv"
    lines = [f"{b.id},{b.lower},{b.upper},{b.size}" for b in packed(120, 120, 1 << 20, 0)]
    given.write_text("\n".join(["id,lower,upper,size", *lines]))
    asked = ["plan", "memory", str(given), "--capacity", str(1 << 20), "--seconds", "0"]
    assert main(asked) == 2
    assert "nor proven impossible" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "in.csv:1: the columns are id,lower,upper,size, found nothing"),
        ("id,lower,size\na,0,1\n", "found id,lower,size"),
        ("id,lower,upper,size\na,0,1\n", "in.csv:2: 3 fields, expected 4"),
        ("id,lower,upper,size\na,0,1,x\n", "in.csv:2: size is not a whole number: 'x'"),
        ("id,lower,upper,size\na,0,1,-4\n", "size must not be negative, got -4"),
        ("id,lower,upper,size\na,3,3,4\n", "[3, 3) holds none"),
        ("id,lower,upper,size\na,0,1,4\n\na,1,2,4\n", "in.csv:4: id 'a' stands already in line 2"),
    ],
)  # fmt: skip
def test_bad_rows_are_named_by_line(
    tmp_path: Path, text: str, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given = tmp_path / "in.csv"
    given.write_text(text)
    assert main(["plan", "memory", str(given), "--capacity", "9"]) == 2
    assert words in capsys.readouterr().err


def test_a_missing_file_and_a_byte_order_mark(tmp_path: Path) -> None:
    from paredown.cost.arena import table

    with pytest.raises(InputError, match="no such file"):
        table.read(tmp_path / "absent.csv")
    path = tmp_path / "bom.csv"
    path.write_text("\ufeffsize,id,lower,upper\n4,a,0,2\n", encoding="utf-8")
    assert table.read(path) == [Buffer("a", 0, 2, 4)]
