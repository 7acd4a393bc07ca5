import pytest

from paredown.figure import Figure, counted, measured, unavailable
from paredown.report import units


@pytest.mark.parametrize(
    ("value", "unit", "said"),
    [
        (0.0017, "s", "1.70 ms"),
        (5.6e-7, "s", "560 ns"),
        (0, "s", "0 s"),
        (164.0, "s", "2 min 44 s"),
        (1536, "B", "1.50 KiB"),
        (512, "B", "512 B"),
        (25_557_032, "B", "24.4 MiB"),
        (4.1e9, "MAC", "4.10 G MACs"),
        (2_236_106, "1", "2.24 M"),
        (0.0123, "J", "12.3 mJ"),
        (1.14e10, "B/s", "11.4 GB/s"),
        (0.106, "x", "0.106x"),
        (0.44, "%", "0.44 %"),
        (0.9356, "score", "0.9356"),
        (-0.0011, "score", "-0.0011"),
        (588.2, "runs/s", "588 runs/s"),
    ],
)
def test_a_quantity_reads_in_the_unit_people_use(value: float, unit: str, said: str) -> None:
    assert units.quantity(value, unit) == said


def test_what_cannot_be_had_is_never_a_number() -> None:
    assert units.figure(unavailable("J", "no counter")) == "n/a"
    assert units.figure(None) == "n/a"
    assert units.seconds(None) == "n/a"


def test_an_interval_names_both_ends_and_the_count() -> None:
    fig = measured(0.0017, "s", spread=(0.0016, 0.0018), n=40)
    assert units.spread(fig) == "1.60 ms to 1.80 ms; n=40"
    assert units.spread(counted(3, "B")) == ""


def test_quantiles_say_what_they_are_over() -> None:
    fig = Figure(
        value=1.0, unit="s", how="measured", quantiles={"p50": 1.0, "p95": 2.0}, over="inputs"
    )
    assert units.spread(fig) == "p50 1.00 s, p95 2.00 s over inputs"


def test_axis_texts_lose_only_zeros_behind_the_point() -> None:
    assert units.tick("30.0 µs") == "30 µs"
    assert units.tick("2.50 ms") == "2.5 ms"
    assert units.tick("100%") == "100%"
    assert units.tick("0.005") == "0.005"
    assert units.tick("1,010") == "1,010"


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(3.2, "3.2 s"), (59.9, "1 min 00 s"), (171, "2 min 51 s"), (3900, "1 h 05 min")],
)
def test_a_duration_reads_as_people_say_it(seconds: float, said: str) -> None:
    assert units.duration(seconds) == said
