"""The papers harness: catalogue, verdicts by power, atomic findings, the generated page."""

import importlib.util
import math
import sys
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import yaml

from paredown.errors import ArtefactError, InputError, ParedownError, UnknownName
from paredown.figure import measured
from paredown.papers import card_keys, catalogue, entry, findings, reproduce
from paredown.papers.card import Card, Check, Experiment, judge, mean_and_power
from paredown.papers.runner import card
from paredown.result import CardsDoc, Finding, Fingerprint

ROOT = Path(__file__).parents[2]
MACHINE = Fingerprint(
    cpu="test", isa=["avx2"], caches={"L1": 1}, cores=2, memory_bytes=1, kernel="k", versions={}
)


class Toy(Card):
    """A card whose effect is given."""

    key = "mobilenetv2"
    claim = "a toy"
    thresholds: ClassVar = {"effect": 1.0}

    def __init__(self, effect, power):
        self.effect, self.power = effect, power

    def experiment(self, scale, progress):
        progress("half way")
        return Experiment(
            {"effect": measured(self.effect, "x")},
            [Check("effect", self.effect, ">=", 1.0, self.power, "x")],
            [0, 1],
        )


def test_catalogue_is_whole_and_says_what_is_planned():
    rows = catalogue()
    assert len(rows) == len({r.key for r in rows}) == 173
    assert all(r.title and r.claim and 1990 < r.year < 2027 for r in rows)
    text = yaml.safe_load((ROOT / "src/paredown/papers/catalogue.yaml").read_text())
    for e in text:
        if e["module"] is not None:
            assert importlib.util.find_spec(e["module"]), f"{e['key']}: {e['module']} is missing"
    assert entry("advmoe").module.startswith("planned: paredown.")


def test_every_card_has_fixed_thresholds_and_a_module():
    for key in card_keys():
        one = card(key)
        assert one.key == key
        assert one.thresholds
        assert not entry(key).module.startswith("planned:")


@pytest.mark.parametrize(
    ("value", "power", "outcome"),
    [(1.2, 0.1, "holds"), (0.8, 0.1, "fails"), (1.05, 0.1, "undecided"), (1.0, 0.0, "holds")],
)
def test_a_check_is_decided_only_beyond_its_power(value, power, outcome):
    assert Check("c", value, ">=", 1.0, power).outcome == outcome
    assert Check("c", -value, "<=", -1.0, power).outcome == outcome


def test_verdicts():
    sure = Check("a", 2, ">=", 1)
    wrong = Check("b", 0, ">=", 1)
    open_ = Check("c", 1.1, ">=", 1, 0.5)
    assert judge(Experiment({}, [sure], []), "quick")[0] == "holds"
    assert judge(Experiment({}, [wrong], []), "quick")[0] == "fails"
    assert judge(Experiment({}, [sure, wrong], []), "quick")[0] == "partly"
    assert judge(Experiment({}, [sure, wrong, open_], []), "quick")[0] == "partly"
    assert judge(Experiment({}, [wrong, open_], []), "quick")[0] == "not testable here"
    verdict, why = judge(Experiment({}, [sure, open_], []), "quick")
    assert verdict == "not testable here"
    assert why.startswith("needs --scale full")
    assert judge(Experiment({}, [], [], untestable="no counter"), "full") == (
        "not testable here",
        "no counter",
    )


def test_power_is_the_interval_of_the_mean():
    mean, half = mean_and_power([1.0, 2.0, 3.0])
    assert mean == 2.0
    # t(0.975, 2) = 4.3027 (tables), deviation 1, n = 3.
    assert half == pytest.approx(4.3027 / math.sqrt(3), rel=1e-4)
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        mean, half = mean_and_power(rng.normal(5, 2, size=6))
        covered += abs(mean - 5) <= half
    assert 0.91 < covered / 400 < 0.99
    with pytest.raises(ValueError, match="two"):
        mean_and_power([1.0])


def test_one_record_per_scale_and_machine(tmp_path):
    said = []
    first = Toy(1.5, 0.1).run("quick", said.append, MACHINE)
    assert said == ["half way"]
    assert first.power.value == 0.1
    findings.write(first, tmp_path)
    findings.write(Toy(1.5, 0.1).run("full", said.append, MACHINE), tmp_path)
    other = MACHINE.model_copy(update={"cpu": "other"})
    findings.write(Toy(1.5, 0.1).run("quick", said.append, other), tmp_path)
    findings.write(Toy(0.5, 0.1).run("quick", said.append, MACHINE), tmp_path)
    stored = findings.read("mobilenetv2", tmp_path)
    assert [(f.scale, f.fingerprint.cpu, f.verdict) for f in stored].count(
        ("quick", "test", "fails")
    ) == 1
    assert len(stored) == 3
    assert findings.best("mobilenetv2", tmp_path).scale == "full"
    assert [p.name for p in tmp_path.iterdir()] == ["mobilenetv2.json"]


def test_a_damaged_file_is_named(tmp_path):
    (tmp_path / "vovnet.json").write_text('{"schema": 1, "findings": [{}]}')
    with pytest.raises(ArtefactError, match=r"vovnet\.json"):
        findings.read("vovnet", tmp_path)


def test_unknown_keys_and_scales_are_refused_before_any_run(tmp_path):
    with pytest.raises(UnknownName):
        reproduce(["mobilenet"], folder=tmp_path)
    with pytest.raises(InputError, match="no claim card"):
        reproduce(["mobilenetv2", "advmoe"], folder=tmp_path)
    with pytest.raises(UnknownName):
        reproduce(["mobilenetv2"], scale="huge", folder=tmp_path)
    with pytest.raises(InputError, match="at least one"):
        reproduce([], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_reproduce_records_and_returns(tmp_path, monkeypatch):
    module = sys.modules["paredown.papers.runner"]
    monkeypatch.setattr(module, "card", lambda key: Toy(2.0, 0.1))
    said = []
    doc = reproduce(["mobilenetv2"], "quick", said.append, folder=tmp_path)
    assert isinstance(doc, CardsDoc)
    assert doc.cards[0].verdict == "holds"
    assert findings.read("mobilenetv2", tmp_path) == [Finding.model_validate(doc.cards[0])]
    assert any("half way" in s for s in said)


def test_a_card_that_cannot_run_names_itself(tmp_path, monkeypatch):
    class Broken(Toy):
        def experiment(self, scale, progress):
            raise ParedownError("no compiler")

    monkeypatch.setattr(sys.modules["paredown.papers.runner"], "card", lambda key: Broken(1.0, 0.0))
    with pytest.raises(ParedownError, match="mobilenetv2 could not run: no compiler"):
        reproduce(["mobilenetv2"], folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_page_is_current():
    spec = importlib.util.spec_from_file_location("papers_doc", ROOT / "scripts/papers_doc.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.PAGE.read_text(encoding="utf-8") == module.page(), (
        "docs/papers.md is stale: run python scripts/papers_doc.py"
    )
