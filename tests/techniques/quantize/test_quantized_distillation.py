"""Weights trained as codes: buckets of few values, exact gradients of points, and a student."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown import runtime
from paredown.analysis import formats
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.runtime import forms_codebook as fc
from paredown.techniques.distance import distillation
from paredown.techniques.quantize import code_points as cp
from paredown.techniques.quantize import quantized_distillation as qd
from paredown.techniques.quantize.quantized_distillation import QuantizedDistillation
from paredown.testing import build
from paredown.workload import TrainingData, Workload


def done(technique, workload):
    return technique.apply(workload, technique.sites(workload, capture(workload)))


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize(("values", "bucket"), [(1, 4), (3, 2), (63, 17), (256, 256), (600, 256)])
def test_codes_stand_for_the_projection(bits, values, bucket):
    torch.manual_seed(values)
    weight = torch.randn(values)
    to = cp.Projected(bits, bucket)
    codes, points, span, low = to.tables(weight)
    want = to(weight)
    packed = fc.pack(codes, bits)
    assert packed.numel() == -(-values * bits // 8)
    got = fc.dequantize_codebook(packed, points, span, low, bits, [values], bucket)
    assert torch.allclose(got, want, atol=1e-6)
    for part in got.split(bucket):
        assert part.unique().numel() <= 2**bits
        assert float(part.min()) == pytest.approx(float(weight[got == part.min()].min()), abs=1e-5)
    steps = span.repeat_interleave(bucket)[:values] / (2**bits - 1)
    assert ((got - weight).abs() <= steps / 2 + 1e-6).all()


@pytest.mark.parametrize(
    ("bits", "largest_first"),
    [
        (2, [1, 0]),
        (3, [1, 0.5, 0.25, 0]),
        (4, [1, 4 / 6, 3 / 6, 2 / 6, 1.5 / 6, 1 / 6, 0.5 / 6, 0]),
    ],
)
def test_float_points_are_the_formats_numbers(bits, largest_first):
    points = cp.float_points(bits)
    assert points.numel() == 2**bits
    assert (2 * points - 1)[-len(largest_first) :].flip(0).tolist() == pytest.approx(largest_first)
    assert torch.allclose(points, 1 - points.flip(0))


def test_float_codes_are_the_nearest_numbers_and_keep_zero():
    torch.manual_seed(0)
    weight = torch.randn(600)
    weight[5] = 0.0
    got = cp.Projected(4, 256, "float")(weight)
    assert float(got[5]) == 0.0
    for part, was in zip(got.split(256), weight.split(256), strict=True):
        grid = (2 * cp.float_points(4) - 1) * was.abs().max()
        away = (was[:, None] - grid).abs().amin(1)
        assert torch.allclose((part - was).abs(), away, atol=1e-6)
    e2m1 = formats.FORMATS["e2m1"]
    scale = weight[:256].abs().max() / e2m1.largest
    off = (e2m1.round(weight[:256] / scale) * scale - got[:256]).abs()
    # Ties apart, which the format breaks to even.
    assert (off > 1e-5).sum() == 0


def test_the_operator_has_a_fake_and_a_price():
    q = torch.randint(0, 256, (20,), dtype=torch.uint8)
    args = (q, torch.rand(4), torch.rand(5), torch.rand(5), 2, [8, 10], 16)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.paredown.dequantize_codebook.default, args, test_utils=tests)
    workload = build("cnn")
    technique = QuantizedDistillation(steps=0)
    after = technique.preview(g := capture(workload), technique.sites(workload, g)).graph
    ours = [n for n in after.nodes if n.op == "paredown::dequantize_codebook"]
    assert ours
    assert all(n.priced and n.work["elementwise"] for n in ours)
    assert after.macs == g.macs


def test_gradients_of_points_are_sums_over_their_weights():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 20), torch.randn(3, 20)
    to = cp.Points(2, 32, weight)
    loss = (F.linear(x, to(weight)) ** 2).sum()
    loss.backward()
    codes, _, span, _ = to.tables(weight)
    w = to(weight).detach().requires_grad_()
    (F.linear(x, w) ** 2).sum().backward()
    by_hand = (w.grad.reshape(-1) * span.repeat_interleave(32)[:120]).double()
    want = torch.zeros(4, dtype=torch.float64).index_add(0, codes.long(), by_hand)
    assert torch.allclose(to.points.grad.double(), want, rtol=1e-4)
    # each weight stands at the nearest point, whatever order they have come to
    to.points.data = to.points.data.flip(0) * 0.9
    unit = cp.scaled(weight, 32)[0].reshape(-1)[:120]
    nearest = (unit[:, None] - to.points.detach()).abs().argmin(1)
    assert torch.equal(to.tables(weight)[0].long(), nearest)


def student():
    """A small CNN that knows a task, with the data it learned it from."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 16, 3, 2, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 10),
    )  # fmt: skip
    x = torch.randn(256, 1, 8, 8)
    y = (x[:, 0, :4].mean((1, 2)) * 20).long().clamp(-5, 4) + 5
    pairs = [((a,), b) for a, b in zip(x.split(32), y.split(32), strict=True)]
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(12):
        for (a,), b in pairs:
            optimizer.zero_grad()
            F.cross_entropy(model(a), b).backward()
            optimizer.step()
    model.eval()
    data = TrainingData(lambda: pairs, F.cross_entropy)
    return Workload(model, (x[:64],), training=data, original=model)


@pytest.mark.parametrize("method", qd.METHODS)
def test_training_brings_two_bits_back_towards_the_original(method):
    workload = student()
    want = workload.call()
    off: dict[int, float] = {}
    for steps in (0, 40):
        way = QuantizedDistillation(2, method, 64, steps, 2e-3, task=0.0)
        off[steps] = float(distillation(done(way, workload).workload.call(), want, None, 2.0))
    assert off[40] < 0.8 * off[0]
    assert torch.equal(workload.call(), want), "the caller's network is as it was"


def test_replay_needs_no_data_and_the_file_is_small(tmp_path):
    workload = student()
    technique = QuantizedDistillation(bits=4, steps=3)
    change = done(technique, workload)
    sites = technique.sites(workload, capture(workload))
    workload.training = None
    again = technique.rewrite(workload, sites, change.decisions)
    assert torch.equal(again.workload.call(), change.workload.call())
    run = runtime.backend("eager").lower(change.workload.copy(), threads=1)
    assert torch.equal(run(*workload.inputs), change.workload.call())
    kept = run.realised("quantized-distillation", sites.ok)
    assert list(kept.kept) == list(sites.ok)
    run.save(tmp_path)
    size = sum(f.stat().st_size for f in tmp_path.rglob("*.safetensors"))
    assert size < 0.35 * sum(p.nbytes for p in workload.model.parameters())


def test_it_says_where_it_cannot():
    workload = student()
    found = QuantizedDistillation(bits=8).sites(workload, capture(workload))
    assert "less than their codes" in found.refused["0:weight"]
    workload.training = None
    assert not QuantizedDistillation().sites(workload, capture(workload)).ok
    for wrong in (
        {"bits": 9},
        {"distance": "no"},
        {"method": "no"},
        {"bucket": 1},
        {"lr": 0.0},
        {"steps": -1},
    ):
        with pytest.raises(InputError):
            QuantizedDistillation(**wrong)
