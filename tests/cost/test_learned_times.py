"""Learned utilisation: descriptions by shape, curves that extrapolate, prices that use them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from paredown.cost.describe import describe, pooled
from paredown.cost.execution import plan
from paredown.cost.learned import PARTS, WEIGHTS_FAR, curve_of, log_factor, times
from paredown.cost.price import FRESH_BYTES, FRESH_BYTES_S, parts_of, price
from paredown.device import Device, Level
from paredown.device.learned import Curve, Learned
from paredown.graph.capture import capture
from paredown.graph.graph import Graph
from paredown.measure import curves
from paredown.workload import Workload

DEVICE = Device(
    name="box", title="box", threads=1, how="nominal", elementwise_s=1e10,
    peak_macs_s={"float32": 1e11}, overhead_s={"eager": 1e-6, "eager/run": 2e-6},
    levels=(Level(name="memory", capacity_bytes=1 << 34, read_bytes_s=1e10),),
    sources={"peak_macs_s": "-", "levels": "-"},
)  # fmt: skip


def graph_of(model: nn.Module, *shape: int, last: bool = False) -> Graph:
    x = torch.zeros(shape)
    if last:
        x = x.to(memory_format=torch.channels_last)
    return capture(Workload(model.eval(), (x,)))


def described(graph: Graph) -> list[tuple[str, tuple[float, ...]]]:
    found = [describe(run, graph) for run in plan(graph, "eager")]
    return [(d.group, d.values) for d in found if d is not None]


def constant(factor: float, length: int, error: float = 0.1) -> Curve:
    return Curve(
        parts=(1.0,) * PARTS,
        scales=(1.0,) * length, low=(0.0,) * length, high=(30.0,) * length,
        points=((0.0,) * length,), weights=(0.0,), mean=math.log(factor), least=-9.0,
        most=9.0, error=error, samples=9,
    )  # fmt: skip


def test_a_convolution_is_described_by_its_product_and_layout() -> None:
    layer = nn.Conv2d(16, 32, 3, stride=2, padding=1)
    ((group, values),) = described(graph_of(layer, 2, 16, 8, 8))
    assert group == "conv/float32"
    pixels, window, filters, groups, area, stride, batch, last = (2**v - 1 for v in values)
    assert (pixels, window, filters, groups) == pytest.approx((2 * 16, 16, 32, 1))
    assert (area, stride, batch, last) == pytest.approx((9, 4, 2, 0))
    assert described(graph_of(layer, 2, 16, 8, 8, last=True))[0][1][-1] == 1.0


def test_kinds_that_are_priced_apart_are_learned_apart() -> None:
    model = nn.Sequential(
        nn.Conv2d(8, 8, 3, groups=8),
        nn.ConvTranspose2d(8, 4, 2, 2),
        nn.Flatten(),
        nn.Linear(144, 5),
    )
    groups = [g for g, _ in described(graph_of(model, 1, 8, 5, 5))]
    assert groups == ["depthwise/float32", "deconv/float32", "linear/float32"]


def test_in_place_results_touch_no_new_memory() -> None:
    model = nn.Sequential(nn.ReLU(), nn.ReLU(inplace=True))
    (_, fresh), (_, in_place) = described(graph_of(model, 4, 4))
    assert fresh[:-1] == in_place[:-1]
    assert (fresh[-1], in_place[-1]) == (1.0, 0.0)


def test_a_group_falls_back_to_its_kind() -> None:
    learned = Learned(curves={"eager/elementwise/float32": constant(2.0, 4)})
    assert pooled("elementwise:gelu/float32") == "elementwise/float32"
    assert curve_of(learned, "eager", "elementwise:gelu/float32") is not None
    assert curve_of(learned, "openvino", "elementwise:gelu/float32") is None


def target(values: tuple[float, ...], log_of_time: float) -> curves.Target:
    """An operator whose analytical time is a second of arithmetic."""
    return curves.Target(values, arithmetic(1.0), math.exp(log_of_time))


def arithmetic(seconds: float) -> tuple[float, ...]:
    return (seconds, *[0.0] * (PARTS - 1))


def predicted_log(curve: Curve, values: list[tuple[float, ...]]) -> list[float]:
    return [math.log(curve.parts[0]) + float(v) for v in log_factor(curve, values)]


def test_a_fitted_curve_interpolates_and_keeps_its_edge_beyond() -> None:
    rng = np.random.default_rng(0)
    sizes = rng.uniform(4, 16, size=(60, 2))
    curve = curves.fit([target(tuple(s), 0.1 * s[0] - 0.05 * s[1]) for s in sizes.tolist()])
    inside = [(8.0, 9.0), (9.0, 11.0)]
    truth = [0.1 * a - 0.05 * b for a, b in inside]
    assert predicted_log(curve, inside) == pytest.approx(truth, abs=0.02)
    assert curve.error < 0.02
    edge, beyond = log_factor(curve, [(curve.high[0], 9.0), (40.0, 9.0)])
    assert edge == beyond


def test_a_preempted_run_does_not_bend_a_curve() -> None:
    sizes = [(float(v),) for v in np.linspace(3, 12, 24)]
    targets = [target(v, 5.0 if i == 11 else 0.5) for i, v in enumerate(sizes)]
    assert predicted_log(curves.fit(targets), [sizes[11]]) == pytest.approx([0.5], abs=0.05)


def test_parts_are_weighed_as_the_machine_takes_them() -> None:
    # Products that reach two thirds of the peak and wait for half of what they write.
    rng = np.random.default_rng(1)
    parts = rng.lognormal(-9, 1.5, size=(80, PARTS))
    truth = np.array([1.5, 1.0, 1.2, 0.0, 0.5, 2.0, 1.0, 0.7, 3.0])
    taken = parts @ truth * rng.lognormal(0, 0.03, size=80)
    taken[7] *= 20  # a preempted run
    found = curves.weigh(parts, taken)
    assert found.min() >= 0
    assert found == pytest.approx(truth, abs=0.2)


def test_parts_that_nothing_tells_apart_share_one_factor() -> None:
    parts = np.outer(np.linspace(1, 2, 12), [1.0, 0.0, 0.0, 1.0, *[0.0] * (PARTS - 4)]) * 1e-5
    found = curves.weigh(parts, 3 * parts.sum(1)).tolist()
    assert found.pop(WEIGHTS_FAR) == pytest.approx(1.0)
    assert found == pytest.approx([3.0] * (PARTS - 1), rel=0.05)


def rows_of(law: dict[str, float], run_s: float) -> list[curves.Row]:
    """Chains as a machine would time them that needs ``law[kind]`` times each bound."""
    rows: list[curves.Row] = []
    for i in range(12):
        size = 8.0 + i / 2
        add = ["elementwise", "elementwise:add/float32", [size, 2.0, 0.0, 1.0],
               [0.0, *arithmetic(1e-6 * (i + 1))[:-1]]]  # fmt: skip
        conv = ["conv", "conv/float32", [size] * 8, list(arithmetic(1e-5 * (i + 1)))]
        for kind, parts in (("pointwise", [add] * 6), ("conv", [conv, conv, add])):
            taken = run_s + sum(law[p[0]] * sum(p[3]) for p in parts)
            rows.append(
                {"backend": "eager", "kind": kind, "seconds": taken, "views": 0, "parts": parts}
            )
    return sorted(rows, key=lambda r: r["kind"] != "pointwise")


def test_a_chain_is_shared_out_among_what_it_is_about() -> None:
    law = {"elementwise": 1.5, "conv": 3.0}
    learned = curves.learn(rows_of(law, 2e-6), {"eager": 2e-6})
    conv = learned.curves["eager/conv/float32"]
    factor = math.exp(log_factor(conv, [(9.0,) * 8])[0])
    assert factor * conv.parts[0] == pytest.approx(3.0, rel=0.01)
    add = learned.curves["eager/elementwise/float32"]
    factor = math.exp(log_factor(add, [(9.0, 2.0, 0.0, 1.0)])[0])
    assert factor * add.parts[1] == pytest.approx(1.5, rel=0.01)


def test_mixed_networks_give_what_operators_take_beside_each_other() -> None:
    law = {"elementwise": 1.5, "conv": 3.0}
    beside = {"elementwise": 1.4, "conv": 1.1}
    rows = rows_of(law, 0.0)
    for i, row in enumerate([r for r in rows if r["kind"] == "conv"]):
        conv, add = row["parts"][0], row["parts"][2]
        parts = [conv] * 4 + [add] * (10 * (i % 4))
        taken = sum(beside[p[0]] * law[p[0]] * sum(p[3]) for p in parts)
        rows.append({**row, "kind": "mixed", "parts": parts, "seconds": taken})
    glue = curves.learn(rows, {"eager": 0.0}).glue_s
    # Convolutions are all arithmetic here, what is pointwise is none.
    assert glue["eager/arithmetic"] == pytest.approx(1.1, abs=0.03)
    assert glue["eager/factor"] == pytest.approx(1.4, abs=0.1)


def test_the_parts_of_a_product_are_its_arithmetic_bytes_and_call() -> None:
    graph = graph_of(nn.Linear(64, 32, bias=False), 16, 64)
    found = parts_of(plan(graph, "eager")[0], graph, DEVICE, "eager")
    numbers = [16 * 64 * 32 / 1e11, 0.0, *(4 * n / 1e10 for n in (64 * 32, 16 * 64, 16 * 32))]
    # All memory is near: nothing waits for a farther level.
    assert found == pytest.approx((*numbers, 0.0, 0.0, 0.0, 1e-6))


def test_weights_in_a_far_level_wait_unless_arithmetic_hides_them() -> None:
    near = Level(name="L1", capacity_bytes=1 << 12, read_bytes_s=1e11)
    box = DEVICE.model_copy(update={"levels": (near, *DEVICE.levels)})

    def waits(rows: int) -> float:
        graph = graph_of(nn.Linear(64, 64, bias=False), rows, 64)
        return parts_of(plan(graph, "eager")[0], graph, box, "eager")[WEIGHTS_FAR]

    weights = 4 * 64 * 64
    assert waits(1) == pytest.approx(weights / 1e10 - weights / 1e11)
    assert waits(20) == pytest.approx(weights / 1e10 - 20 * 64 * 64 / 1e11)
    assert waits(4096) == 0.0


def test_results_that_an_allocator_gives_back_are_new_pages() -> None:
    def fresh(elements: int) -> float:
        graph = graph_of(nn.ReLU(), elements)
        return parts_of(plan(graph, "eager")[0], graph, DEVICE, "eager")[7]

    assert fresh(FRESH_BYTES // 4) == 0.0
    assert fresh(FRESH_BYTES // 4 + 1) == pytest.approx((FRESH_BYTES + 4) / FRESH_BYTES_S)


def test_what_is_no_arithmetic_takes_longer_where_nothing_is_warm() -> None:
    graph = graph_of(nn.Linear(64, 64), 32, 64)
    curve = {"eager/linear/float32": constant(3.0, 6)}
    parts = parts_of(plan(graph, "eager")[0], graph, DEVICE, "eager")

    def seconds(**glue: float) -> float:
        known = Learned(curves=curve, glue_s={f"eager/{k}": v for k, v in glue.items()})
        return price(graph, DEVICE.model_copy(update={"learned": known})).costs[0].seconds

    assert seconds() == pytest.approx(3 * sum(parts))
    assert seconds(factor=1.5) == pytest.approx(3 * parts[0] + 4.5 * sum(parts[1:]))
    assert seconds(arithmetic=2.0, call=1e-6) == pytest.approx(3 * parts[0] + 3 * sum(parts) + 1e-6)


def test_a_factor_stays_within_what_was_seen() -> None:
    curve = constant(3.0, 6).model_copy(update={"most": math.log(2.0)})
    assert log_factor(curve, [(0.0,) * 6]) == pytest.approx([math.log(2.0)])


def test_price_weighs_the_parts_and_says_its_error() -> None:
    graph = graph_of(nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64)), 32, 64)
    run = plan(graph, "eager")[0]
    bound = sum(parts_of(run, graph, DEVICE, "eager"))
    learned = Learned(curves={"eager/linear/float32": constant(3.0, 6, error=0.2)})
    priced = price(graph, DEVICE.model_copy(update={"learned": learned}), backend="eager")
    assert [c.seconds for c in priced.costs] == pytest.approx([3 * bound] * 2)
    assert priced.error == pytest.approx(0.2 * 6 * bound / priced.seconds)
    low, high = priced.latency.spread or (0, 0)
    assert low < priced.seconds < high
    assert priced.latency.how == "predicted"
    other = price(graph, DEVICE.model_copy(update={"learned": learned}), backend="openvino")
    assert other.error is None, "a backend that was not learned is priced as before"
    assert other.latency.spread is None


def test_utilisation_never_exceeds_one() -> None:
    graph = graph_of(nn.Linear(512, 512), 512, 512)
    learned = Learned(curves={"eager/linear/float32": constant(1e-6, 6)})
    (cost,) = price(graph, DEVICE.model_copy(update={"learned": learned})).costs
    assert cost.seconds == cost.ideal_s == 512**3 / 1e11


def test_equal_operators_are_predicted_once() -> None:
    one = describe(
        plan(graph_of(nn.Linear(8, 8), 4, 8), "eager")[0], graph_of(nn.Linear(8, 8), 4, 8)
    )
    learned = Learned(curves={"eager/linear/float32": constant(2.0, 6)})
    parts = (1e-6, 0.0, 2e-6, *[0.0] * (PARTS - 4), 1e-6)
    found = times(learned, "eager", [one, None, one], [parts] * 3)
    assert found[1] is None
    assert found[0] is not None
    assert found[0] == found[2]
    assert (found[0].seconds, found[0].arithmetic) == pytest.approx((8e-6, 2e-6))
