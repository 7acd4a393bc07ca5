"""`pare plan serving`: what fits is split, what does not is streamed, two kinds are weighed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paredown import device, verbs
from paredown.cli import main
from paredown.cost.serving import load
from paredown.cost.serving.memory import behind
from paredown.cost.serving.memory import main as near
from paredown.cost.serving.plan import plan
from paredown.errors import InputError, NotApplicable
from paredown.report.serving_plan import serving_plan

DGX = device.load("dgx-h100")


def test_memory_is_what_is_no_cache() -> None:
    for name, level in (("dgx-h100", "HBM3"), ("sn40l", "HBM"), ("xeon-8480", "memory"),
                        ("a6000-workstation", "GDDR6"), ("pi5", "memory")):  # fmt: skip
        assert near(device.load(name)).name == level
    assert [lv.name for lv in behind(device.load("sn40l"))] == ["HBM", "DDR"]
    with pytest.raises(NotApplicable, match="no memory of 1 GiB"):
        near(device.load("stm32h743"))


def test_what_fits_is_split() -> None:
    doc = plan(load("llama-3-70b"), DGX, batch=16, context=2048)
    assert doc.fits
    assert [(s.tensor, s.pipeline) for s in doc.splits] == [(8, 1), (4, 2), (2, 4), (1, 8)]
    assert doc.streamed == {}
    assert doc.exchange == []
    for s in doc.splits:
        assert s.tokens_s.known() == pytest.approx(16 / s.token_s.known())
        assert s.first_s.known() > s.token_s.known()
    # A batch of one gains nothing from stages.
    alone = plan(load("llama-3-70b"), DGX, batch=1).splits
    assert alone[0].token_s.known() < alone[-1].token_s.known()
    assert serving_plan(doc)


def test_what_does_not_fit_is_streamed_where_it_can_be() -> None:
    doc = plan(load("lm-530b"), device.load("a6000-workstation"), context=2048)
    assert not doc.fits
    assert doc.splits == []
    assert doc.streamed["break-even tokens"].value == 30960
    assert "switching to another model" not in doc.figures
    assert any("B are 1,028," in n for n in doc.notes)
    nowhere = plan(load("lm-530b"), device.load("h100-sxm"))
    assert nowhere.streamed == {}
    assert any("too many" in n for n in nowhere.notes)


def test_experts_are_exchanged_over_every_link() -> None:
    doc = plan(load("deepseek-v3"), device.load("deepseek-v3-hw"))
    found = {e.link: e.token_s.known() for e in doc.exchange}
    assert found["infiniband"] == pytest.approx(15.11e-3, rel=1e-3)
    assert len(found) == 3


def test_two_kinds_of_devices_are_weighed() -> None:
    doc = plan(
        load("llama-3-70b"), device.load("h100-sxm"), context=8192, attention=device.load("h20")
    )
    assert [p.devices for p in doc.pools] == ["h100-sxm", "h20", "h100-sxm and h20"]
    assert doc.pools[2].attention > 0
    assert doc.pools[2].link_bytes_s is not None
    assert doc.pools[0].link_bytes_s is None
    assert serving_plan(doc)


def test_the_verb_writes_its_document(tmp_path: Path) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "serving", "llama-2-7b", "--device", "sn40l", "--json", str(path)]) == 0
    doc = json.loads(path.read_text())
    assert doc == json.loads(verbs.plan_serving("llama-2-7b", device="sn40l").to_json())
    assert doc["kind"] == "plan-serving"
    assert doc["figures"]["cache per token"] == {**doc["figures"]["cache per token"],
                                                 "value": 524288.0, "how": "counted"}  # fmt: skip
    assert "states no link" in " ".join(doc["notes"])


def test_refusals(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "serving", "llama-9"]) == 2
    assert "unknown language model 'llama-9'" in capsys.readouterr().err
    assert main(["plan", "serving", "llama-2-7b", "--device", "rp2040"]) == 2
    assert main(["plan", "serving", "llama-2-7b", "--attention-device", "h20"]) == 2
    assert "dgx-h100 states no price_usd" in capsys.readouterr().err
    with pytest.raises(InputError, match="at least 1"):
        plan(load("llama-2-7b"), DGX, batch=0)
