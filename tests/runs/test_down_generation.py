"""The main job on a generation: judged on text, timed by its steps, replayed from its folder."""

from pathlib import Path

import pytest

HERE = Path(__file__).parent
TARGET = f"{HERE / 'text_decoder.py'}:target"


@pytest.mark.slow
def test_a_decoder_is_pared_and_its_folder_generates_again(tmp_path):
    import paredown
    from paredown import artefact
    from paredown.paring import check

    budget = ["size <= 0.6x", "latency.per_token <= 20x", "drop <= 0.05"]
    found = paredown.down(
        TARGET,
        to=budget,
        effort="40s",
        threads=1,
        backend="eager",
        only=["weight-only"],
        out=tmp_path / "out",
    )
    doc = found.doc
    assert doc.verdict == "met", [c.why for c in doc.constraints]
    assert any(s["technique"] == "weight-only" for s in doc.recipe["steps"])
    for side in (doc.before, doc.after):
        assert {"latency.first", "latency.per_token"} <= side.figures.keys()
        assert side.figures["throughput"].unit == "tokens/s"
    assert {"latency.first", "latency.per_token"} <= doc.after.ratios.keys()
    # An untrained network's logits nearly tie; by chance one token in 256 would agree.
    assert doc.after.figures["fidelity"].known() > 0.5
    loaded = artefact.load(tmp_path / "out", threads=1)
    assert loaded.executable(*loaded.workload.inputs).shape == (1, 6)
    assert len(loaded.executable.laps) == 6
    again = check(str(tmp_path / "out"), to=budget[:2], threads=1)
    assert again.met, [c.why for c in again.constraints]
