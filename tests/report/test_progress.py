import io
import re

import pytest
from rich.console import Console

from paredown.report import progress


def test_lines_say_where_it_stands_and_no_more_than_asked(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    lines = progress.Lines(every=10)
    lines.start("pare down x", total=180)
    lines.update("trial 1", best="static-int8 (1.2 ms)")
    now[0] += 45
    lines.update("trial 2")
    now[0] += 5
    lines.update("trial 3")
    lines.note("a candidate crashed")
    lines.close()
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == [
        "pare down x",
        "25% trial 2, best static-int8 (1.2 ms), 2 min 15 s left",
        "a candidate crashed",
    ]


def test_a_count_of_things_done_goes_before_the_clock(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = progress.Lines(every=0)
    lines.start("cards", total=4)
    lines.update("vovnet", done=3)
    assert capsys.readouterr().err.splitlines()[1] == "75% vovnet"


def test_the_bar_shows_the_same_and_goes_away() -> None:
    out = io.StringIO()
    bar = progress.Bar(Console(file=out, force_terminal=True, width=100))
    bar.start("pare down x", total=180)
    bar.update(best="bf16 on openvino")
    bar.update("trial 2: [odd] markup")
    bar.note("a note with [brackets]")
    bar.close()
    bar.close()
    said = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    for part in ("trial 2: [odd] markup", "best bf16 on openvino", "left", "[brackets]"):
        assert part in said


def test_off_a_terminal_there_are_lines() -> None:
    assert isinstance(progress.on_stderr(), progress.Lines)


@pytest.mark.parametrize("make", [progress.quiet, progress.Lines])
def test_all_take_the_same_calls(make: object, capsys: pytest.CaptureFixture[str]) -> None:
    told: progress.Progress = make()  # type: ignore[operator]
    told.start("x")
    told.update()
    told.update("y", best="z", done=1, total=2, eta=3)
    told.note("n")
    told.close()
    assert capsys.readouterr().out == ""
