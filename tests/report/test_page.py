import os
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from report import samples

from paredown import report
from paredown.figure import unavailable
from paredown.report import network_tables, page
from paredown.result import Document, DownDoc, ProfileDoc

VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """Collects tags, text and the attributes that may load something; checks that tags nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data

    def ids(self) -> list[str]:
        return [i for _, a in self.tags if (i := a.get("id")) is not None]


DOCS = {
    "down": samples.down_doc,
    "infeasible": lambda: samples.down_doc("infeasible"),
    "no_gain": lambda: samples.down_doc("no_gain"),
    "profile": samples.profile_doc,
    "unmeasured": lambda: samples.profile_doc(timed=False),
    "compare": samples.compare_doc,
    "bench": lambda: samples.compare_doc("bench"),
    "check": samples.check_doc,
}


@pytest.mark.parametrize("name", DOCS)
def test_a_page_is_whole_self_contained_and_small(name: str) -> None:
    text = report.html(DOCS[name]())
    found = Page(text)
    assert len(text.encode()) < 1_000_000
    for tag, attributes in found.tags:
        assert tag != "script"
        assert not {"onclick", "onload", "src", "srcset"} & attributes.keys()
        if tag in ("link", "a", "use", "image"):
            assert (attributes.get("href") or "").startswith(("#", "data:"))
    assert "url(" not in text
    assert "@import" not in text
    ids = found.ids()
    assert len(ids) == len(set(ids))
    for _, attributes in found.tags:
        if (href := attributes.get("href") or "").startswith("#"):
            assert href[1:] in ids
        for label in (attributes.get("aria-labelledby") or "").split():
            assert label in ids
    assert not re.search(r"\b(nan|None|Undefined|inf)\b", found.text)


def test_a_result_page_has_every_part() -> None:
    found = Page(report.html(samples.down_doc()))
    wanted = "budget sides layers where front recipe prediction trials sites environment"
    figures = "waterline-before waterline-after gap pareto memory agreement"
    assert set((wanted + " " + figures).split()) <= set(found.ids())
    for said in (
        "latency <= 0.1x",
        "0.091x",
        "not proven",
        "static-int8",
        "segmentation fault",
        "predicted 1.3x slower",
        "simulated",
        "no RAPL counter",
        "needs training data",
        "amx_int8",
    ):
        assert said in found.text, said


def test_every_way_of_knowing_stands_beside_its_number() -> None:
    text = report.html(samples.profile_doc())
    for how in ("measured", "counted", "predicted", "unavailable"):
        assert f'class="fig {how}"' in text
    shown = re.findall(r'<span class="fig (\w+)"><b>([^<]*)</b>', text)
    assert ("unavailable", "n/a") in shown
    assert all((value == "n/a") == (how == "unavailable") for how, value in shown)


def test_a_figure_that_cannot_be_had_gives_its_reason() -> None:
    doc = samples.profile_doc()
    totals = doc.totals.model_copy(update={"latency_s": unavailable("s", "aten::foo has no rule")})
    text = report.html(doc.model_copy(update={"totals": totals}))
    assert "aten::foo has no rule" in text


def test_text_of_the_user_is_never_markup() -> None:
    evil = "<script>alert(1)</script>&\"'"
    doc = samples.down_doc().model_copy(update={"target": evil, "notes": [evil]})
    doc.trials[0].reason = evil
    doc.sites[0].detail = evil
    doc.operators_before[0].module = evil
    found = Page(report.html(doc))
    assert evil in found.text
    assert not any(tag == "script" for tag, _ in found.tags)


def bare(doc: Document) -> Document:
    """The document with every list and mapping emptied that may be empty."""
    empty = {
        name: type(getattr(doc, name))()
        for name in type(doc).model_fields
        if isinstance(getattr(doc, name), (list, dict)) and name not in ("sides",)
    }
    return doc.model_copy(update=empty)


@pytest.mark.parametrize("name", ["down", "profile", "compare"])
def test_empty_lists_are_said_in_words(name: str) -> None:
    found = Page(report.html(bare(DOCS[name]())))
    assert "Environment" in found.text


def test_a_failed_search_without_a_best_single_backend_still_has_its_page() -> None:
    doc = samples.down_doc("no_gain").model_copy(update={"best_single_backend": None})
    doc = doc.model_copy(update={"trials": [t for t in doc.trials if t.state == "failed"]})
    assert "none measured" in Page(report.html(doc)).text


def test_two_thousand_operators_are_capped_and_their_sums_kept() -> None:
    doc = samples.profile_doc(repeat=17)
    assert len(doc.operators) > 2000
    text = report.html(doc)
    assert len(text.encode()) < 1_000_000
    assert text.count("<tr>") < 700
    assert f"The 200 slowest of {len(doc.operators):,} operators" in text
    table = network_tables.operators(doc.operators)
    for key in ("count", "macs", "bytes"):
        assert table.shown[key] + table.rest[key] == table.all[key]
    assert table.all["macs"] == sum(o.macs or 0 for o in doc.operators)
    assert table.all["predicted"] == pytest.approx(
        sum(o.predicted_s.known() for o in doc.operators)
    )


def test_a_thousand_trials_stay_small_and_the_fastest_are_shown() -> None:
    doc = samples.down_doc(count=1000)
    text = report.html(doc)
    assert len(text.encode()) < 1_000_000
    assert "The 200 fastest of 1,000 candidates" in text


def test_write_replaces_the_page_or_leaves_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "new" / "report.html"
    assert report.write(samples.compare_doc(), path) == path
    before = path.read_text()

    def broken(source: str, target: str) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", broken)
    with pytest.raises(OSError, match="disk full"):
        report.write(samples.down_doc(), path)
    assert path.read_text() == before
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]


def test_every_document_has_a_page() -> None:
    for doc in (samples.plan_doc(), samples.cards_doc(), samples.doctor_doc()):
        assert doc.kind in Page(report.html(doc)).text


@pytest.mark.parametrize("kind", [ProfileDoc, DownDoc])
def test_the_page_reads_only_the_document(kind: type[Document]) -> None:
    """Read back from JSON it makes the same page: nothing hangs on objects."""
    doc = samples.profile_doc() if kind is ProfileDoc else samples.down_doc()
    assert page.html(kind.model_validate_json(doc.to_json())) == page.html(doc)
