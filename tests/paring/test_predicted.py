"""`--accept predicted`: verdicts on other devices, and on metrics this machine cannot measure."""

import json
from pathlib import Path

import pytest

from paredown import artefact, cli, down, targets, verbs
from paredown import device as devices
from paredown.cost import price
from paredown.errors import BudgetError, InputError, ParedownError
from paredown.figure import measured, predicted, unavailable
from paredown.graph.capture import capture
from paredown.measure import calibrate
from paredown.paring import check, plan, request
from paredown.paring.effort import Clock
from paredown.paring.predicting import Accepted
from paredown.report import terminal
from paredown.result import DownDoc
from paredown.search.space import Candidate

TINY = f"{Path(__file__).with_name('tiny.py')}:target"
QUICK = {"only": ["static-int8"], "threads": 1, "backend": "onnxruntime", "accept": "predicted"}
RUNNING = {"latency", "throughput", "memory", "traffic"}


@pytest.fixture(scope="module")
def pi5(tmp_path_factory):
    out = tmp_path_factory.mktemp("pi5") / "out"
    return down(
        TINY, to=["latency <= 0.7x", "drop <= 10%"], device="pi5", out=out, effort="15s", **QUICK
    )


def test_another_devices_budget_is_met_by_prediction(pi5):
    doc = pi5.doc
    assert (doc.verdict, doc.device) == ("predicted_met", "pi5")
    by = {c.metric: c for c in doc.constraints}
    assert by["latency"].achieved.how == "predicted"
    assert by["latency"].proven is None
    # Quality went through a real executable, on the examples that decide.
    assert by["drop"].achieved.how == "measured"
    assert by["drop"].achieved.n == 120
    assert doc.after.figures["size"].how == "counted"
    assert "predicted for pi5" in " ".join(doc.headline)


def test_nothing_timed_here_is_in_a_result_about_another_device(pi5):
    doc = pi5.doc
    assert doc.a_a_ratio is None
    for side in (doc.before, doc.best_single_backend, doc.after):
        assert {side.figures[m].how for m in RUNNING} == {"predicted"}
    for ratios in (doc.best_single_backend.ratios, doc.after.ratios):
        assert {ratios[m].how for m in RUNNING} == {"predicted"}
    for trial in doc.trials:
        assert not RUNNING & trial.measured.keys()
        assert trial.state != "done" or trial.predicted["latency"].how == "predicted"


def test_the_baseline_is_the_original_priced_there(pi5):
    graph = capture(targets.resolve(TINY))
    assert pi5.doc.before.figures["latency"].value == pytest.approx(
        price(graph, devices.load("pi5"), backend="eager").seconds
    )


def test_the_price_that_decides_is_that_of_the_saved_network(pi5):
    after = pi5.doc.after
    graph = capture(artefact.rebuilt(pi5.folder))
    again = price(graph, devices.load("pi5"), backend=after.backend)
    # Savings that the executable did not confirm make the reported figure dearer, never cheaper.
    assert after.figures["latency"].value >= again.seconds * (1 - 1e-9)
    (chosen,) = [t for t in pi5.doc.trials if t.recipe == pi5.doc.recipe]
    assert chosen.predicted["latency"].value == pytest.approx(after.figures["latency"].value)


def test_the_folder_shows_checks_and_runs_here(pi5, capfd):
    shown = verbs.show(str(pi5.folder))
    assert DownDoc.model_validate(shown.result) == pi5.doc
    page = (pi5.folder / "report.html").read_text()
    assert "Budget met by prediction only" in page
    assert "Everything tried" in page
    terminal.show(pi5.doc)
    assert "Budget met by prediction only" in capfd.readouterr().out
    loaded = artefact.load(pi5.folder, threads=1)
    assert loaded(*pi5.workload.inputs).shape == (1, 5)
    asked = {"device": "pi5", "threads": 1, "accept": "predicted"}
    same = check(str(pi5.folder), to=["latency <= 0.7x", "drop <= 10%"], **asked)
    assert (same.verdict, same.met, same.device) == ("predicted_met", True, "pi5")
    assert same.constraints[0].achieved.value == pytest.approx(
        pi5.doc.after.ratios["latency"].value
    )
    tight = check(str(pi5.folder), to=["latency <= 0.001x"], **asked)
    assert (tight.verdict, tight.met) == ("predicted_infeasible", False)


def test_a_search_for_one_device_is_not_resumed_for_another(pi5):
    with pytest.raises(InputError, match="the device is not"):
        down(
            TINY,
            to=["latency <= 0.7x", "drop <= 10%"],
            device="stm32f746",
            out=pi5.folder,
            resume=True,
            effort="15s",
            **QUICK,
        )


def test_a_microcontrollers_memory_that_cannot_be_met(tmp_path):
    doc = down(
        TINY,
        to=["memory <= 32 KiB", "size <= 1 MiB"],
        device="stm32f746",
        out=tmp_path / "out",
        effort="5s",
        **QUICK,
    ).doc
    assert doc.verdict == "predicted_infeasible"
    assert doc.binding == "memory <= 32 KiB"
    by = {c.metric: c for c in doc.constraints}
    assert (by["memory"].achieved.how, by["memory"].met) == ("predicted", False)
    assert (by["size"].achieved.how, by["size"].met) == ("counted", True)
    assert "predicted_infeasible" in (tmp_path / "out" / "result.json").read_text()


@pytest.mark.slow
def test_only_what_cannot_be_measured_here_is_predicted(tmp_path):
    # Folding the norms alone saves these bytes: the first candidate meets it, on any machine.
    to = ["traffic <= 0.995x", "latency <= 50x"]
    doc = down(TINY, to=to, out=tmp_path / "out", effort="10s", **QUICK).doc
    how = {c.metric: c.achieved.how for c in doc.constraints}
    assert how == {"traffic": "predicted", "latency": "measured", "drop": "measured"}
    assert doc.verdict == "predicted_met"
    assert doc.before.figures["latency"].how == "measured"


def test_an_unmeasurable_metric_that_no_prediction_can_give_is_refused(tmp_path):
    to = ["energy <= 0.5x"]
    with pytest.raises(BudgetError, match="pi5 states no energy"):
        down(TINY, to=to, device="pi5", out=tmp_path, accept="predicted")
    with pytest.raises(BudgetError, match="--accept predicted"):
        down(TINY, to=["latency <= 0.5x"], device="pi5", out=tmp_path)
    with pytest.raises(InputError, match="never proven"):
        down(TINY, to=["latency <= 1 s"], device="pi5", out=tmp_path, strict=True, **QUICK)


def test_a_device_file_with_energies_is_priced_in_joules(tmp_path):
    text = (devices.files.CATALOGUE / "pi5.toml").read_text()
    text = text.replace('name = "pi5"', 'name = "mine"', 1)
    text = text.replace(
        "write_bytes_s = 1.707e10", "write_bytes_s = 1.707e10\nenergy_j_per_byte = 1e-10"
    )
    text = text.replace(
        "[overhead_s]", "[energy_j_per_mac]\nfloat32 = 5e-12\nint8 = 1e-12\n\n[overhead_s]"
    )
    path = tmp_path / "mine.toml"
    path.write_text(text)
    doc = plan(TINY, to=["energy <= 0.5x"], device=str(path), out=tmp_path / "o", **QUICK)
    best = doc.candidates[0]
    assert doc.device == "mine"
    assert 0 < best["predicted"]["energy"] < 1e-3
    assert best["recipe"]["steps"][-1]["technique"] == "static-int8"


def test_plan_prices_on_the_device_that_down_would_be_judged_on(tmp_path, pi5):
    doc = plan(TINY, to=["latency <= 0.7x"], device="pi5", out=tmp_path / "o", **QUICK)
    steps = [s["technique"] for s in pi5.doc.recipe["steps"]]
    same = [c for c in doc.candidates if [s["technique"] for s in c["recipe"]["steps"]] == steps]
    # The plan's product of single steps against the price of the whole rewritten network.
    after = pi5.doc.after.figures["latency"].value
    assert any(c["predicted"]["latency"] == pytest.approx(after, rel=0.3) for c in same)
    with pytest.raises(BudgetError, match="--accept predicted"):
        plan(TINY, to=["latency <= 0.7x"], device="pi5", out=tmp_path / "o")


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"to": ["size <= 0.5x"], "keep": [], "resume": True}, "nothing to resume"),
        ({"to": ["score <= 2"]}, "other side"),
        ({"to": ["latency <= 0.5x"], "backend": "nope"}, "unknown backend"),
        ({"to": ["score >= 3"]}, "above the scale"),
    ],
)
def test_nothing_is_calibrated_before_everything_is_validated(tmp_path, monkeypatch, options, said):
    def calibrated(**_):
        raise AssertionError("calibrated before the request was refused")

    monkeypatch.setattr(calibrate, "this", calibrated)
    with pytest.raises(ParedownError, match=said):
        request.make(TINY, out=tmp_path / "o", **options)


def test_check_refuses_a_comparison_without_an_original(capfd):
    path = TINY.partition(":")[0]
    assert cli.main(["check", path, "--to", "latency <= 0.5x", "--json", "-"]) == 2
    out, err = capfd.readouterr()
    assert "compares with an original" in json.loads(out)["error"]["message"]
    assert err.count("\n") == 1


def test_what_was_measured_is_not_replaced_by_a_prediction():
    before = {"memory": predicted(200, "B"), "latency": predicted(2, "s")}
    guess = {"memory": predicted(100, "B"), "latency": predicted(1, "s")}
    figures = {"latency": measured(3, "s"), "memory": unavailable("B", "nothing counts it")}
    ratios = {"latency": measured(0.9, "x")}
    Accepted(frozenset(), True, before).fill(figures, ratios, guess)
    assert figures["latency"].how == "measured"
    assert (figures["memory"].how, ratios["memory"].value) == ("predicted", 0.5)
    Accepted(frozenset({"latency"}), True, before).fill(figures, ratios, guess)
    assert (figures["latency"].value, ratios["latency"].value) == (1, 0.5)


def test_a_failed_candidates_seconds_count_but_not_its_recovery():
    clock = Clock(deadline=0.0, recover_s=30.0, recovering="recover")
    plain = Candidate((("backend", "eager"),))
    trained = Candidate((("recover", "train"), ("backend", "eager")))
    clock.note(plain, 4.0, failed=True)
    assert clock.taken == [4.0]
    clock.note(trained, 40.0, failed=True)
    assert clock.trains(trained)
    clock.note(trained, 40.0)
    assert not clock.trains(trained)
