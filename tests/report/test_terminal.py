import io

import pytest
from report import samples
from rich.console import Console

from paredown.report import terminal
from paredown.result import Document, ErrorBody, ErrorDoc

EVERY = [
    samples.profile_doc,
    samples.down_doc,
    samples.compare_doc,
    samples.check_doc,
    samples.plan_doc,
    samples.device_doc,
    samples.techniques_doc,
    samples.papers_doc,
    samples.zoo_doc,
    samples.cards_doc,
    samples.doctor_doc,
    samples.show_doc,
]


def shown(doc: Document, width: int = 140) -> str:
    out = io.StringIO()
    terminal.show(doc, Console(file=out, width=width, highlight=False))
    return out.getvalue()


@pytest.mark.parametrize("make", EVERY)
@pytest.mark.parametrize("width", [80, 140])
def test_every_document_has_a_table_that_fits(make: object, width: int) -> None:
    said = shown(make(), width)  # type: ignore[operator]
    assert said.strip()
    assert max(map(len, said.splitlines())) <= width


def test_a_result_shows_verdict_budget_ratios_and_what_failed() -> None:
    said = shown(samples.down_doc())
    for part in (
        "Budget met",
        "11.0x faster than its author runs it (eager), and 1.6x faster than merely switching",
        "met, not proven",
        "0.62x ●",
        "12 candidates measured, 1 skipped, 1 failed in 2 min 51 s",
        "segmentation fault",
        "1 site is simulated and saves nothing",
        "Report: pared/digits-20261121T093000Z/report.html",
        "1 MAC = 2 FLOPs",
    ):
        assert part in " ".join(said.split()), part


def test_how_each_figure_is_known_stands_beside_it() -> None:
    said = shown(samples.profile_doc())
    assert "● measured, ■ counted, ○ predicted" in said
    assert "n/a (no RAPL counter is readable on this machine)" in said
    assert "aten::roi_align: left out, not counted as zero" in said


def test_install_lines_are_not_markup() -> None:
    assert "paredown[openvino]" in shown(samples.doctor_doc())
    assert "paredown[onnx]" in shown(samples.plan_doc())


def test_a_plan_takes_plain_numbers_too() -> None:
    doc = samples.plan_doc()
    doc.candidates[0]["predicted"] = {"latency": 0.0021, "size": 1048576}
    assert "latency 2.10 ms, size 1.00 MiB" in shown(doc)


def test_an_error_is_no_table() -> None:
    doc = ErrorDoc(error=ErrorBody(type="X", message="y", exit_code=2))
    with pytest.raises(TypeError, match="no table for ErrorDoc"):
        shown(doc)
