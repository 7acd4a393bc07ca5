import pytest
from report import samples

from paredown.figure import counted, measured, predicted
from paredown.report import words
from paredown.result import DownDoc


@pytest.mark.parametrize(
    ("metric", "ratio", "said"),
    [
        ("latency", 0.106, "9.4x faster"),
        ("latency", 1.5, "1.5x slower"),
        ("latency.p95", 0.5, "2.0x faster"),
        ("size", 0.25, "4.0x smaller"),
        ("memory", 2.0, "2.0x more memory"),
        ("throughput", 4.0, "4.0x higher"),
        ("throughput", 0.5, "2.0x lower"),
        ("latency", 1.01, "the same latency"),
    ],
)
def test_a_ratio_in_words_points_the_right_way(metric: str, ratio: float, said: str) -> None:
    assert words.change(metric, ratio) == said


def test_the_headline_puts_the_author_and_the_best_single_backend_side_by_side() -> None:
    first, second, third = words.headline(samples.down_doc())
    assert first == (
        "11.0x faster than its author runs it (eager), and 1.6x faster than merely switching the "
        "runtime (openvino bf16)."
    )
    assert second == "6.9x smaller (1.25 MiB) and 4.8x less memory (3.24 MiB)."
    assert "paired bootstrap" in third
    assert "0.44 %" in third
    assert "900 held-out examples" in third


def test_slower_than_the_best_single_backend_is_said() -> None:
    doc = samples.down_doc()
    doc.after.ratios["latency:best_single_backend"] = measured(1.25, "x")
    assert ", but 1.2x slower than merely switching the runtime (" in words.headline(doc)[0]


def test_as_fast_as_the_best_single_backend_is_said() -> None:
    doc = samples.down_doc()
    doc.after.ratios["latency:best_single_backend"] = measured(0.99, "x")
    assert ", the same latency as merely switching the runtime (" in words.headline(doc)[0]


def test_the_ratio_to_the_best_single_backend_is_a_quotient_without_a_pair() -> None:
    doc = samples.down_doc()
    del doc.after.ratios["latency:best_single_backend"]
    versus = words.versus(doc, "latency")
    assert versus is not None
    assert versus.known() == pytest.approx(0.091 / 0.147)
    assert versus.spread is None


def test_a_quotient_with_a_prediction_is_a_prediction() -> None:
    doc = samples.down_doc()
    del doc.after.ratios["latency:best_single_backend"]
    doc.after.ratios["latency"] = predicted(0.1, "x")
    versus = words.versus(doc, "latency")
    assert versus is not None
    assert versus.how == "predicted"
    assert "(predicted)" in words.headline(doc)[0]


def test_what_did_not_change_is_not_praised() -> None:
    doc = samples.down_doc().model_copy(update={"changed": False})
    said = words.headline(doc)
    assert said[0].startswith("The original already meets the budget")
    assert not any("faster" in s or "smaller" in s for s in said)


def test_no_gain_recommends_the_original_and_praises_nothing() -> None:
    said = words.headline(samples.down_doc("no_gain"))
    assert said[0] == "No candidate was cheaper beyond doubt: the original is recommended."
    assert not any("faster" in s for s in said)


def test_an_infeasible_budget_names_what_binds() -> None:
    assert any("latency <= 0.1x" in s for s in words.headline(samples.down_doc("infeasible")))


def test_fidelity_is_never_passed_off_as_the_users_metric() -> None:
    doc = samples.down_doc()
    for name in ("drop", "score"):
        del doc.after.figures[name]
    doc.after.figures["fidelity"] = measured(0.994, "1")
    assert words.headline(doc)[-1] == "Fidelity to the original 0.994: that is not your metric."


def test_nothing_known_makes_no_sentence() -> None:
    doc: DownDoc = samples.down_doc()
    doc.after.ratios.clear()
    doc.after.figures.clear()
    assert words.headline(doc) == []


def test_a_recipe_in_one_line() -> None:
    assert words.recipe(samples.RECIPE) == (
        "structured-pruning (share 0.25, importance taylor), fold-norm, "
        "static-int8 (percentile 99.99) -> openvino"
    )
    assert words.recipe({"steps": [], "lower": {"backend": "eager"}}) == "no technique -> eager"
    assert words.recipe(None) == "as it is"


def test_counted_ratios_are_not_marked_as_predictions() -> None:
    doc = samples.down_doc()
    doc.after.ratios["size"] = counted(0.5, "x")
    assert "2.0x smaller (1.25 MiB)" in words.headline(doc)[1]
