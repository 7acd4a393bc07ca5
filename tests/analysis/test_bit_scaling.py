"""Total bits against the saved file, the front, coded activations, diagnostics."""

import json
import math

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from paredown.analysis import bit_scaling as bs
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.papers.cards import _pixels
from paredown.techniques.quantize.quantized_distillation import QuantizedDistillation
from paredown.workload import TrainingData, Workload


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 12, 3), nn.BatchNorm2d(12), nn.ReLU(), nn.Flatten(), nn.Linear(432, 31)
    ).eval()


def coded(model, bits, bucket=64):
    x = torch.randn(4, 1, 8, 8)
    data = TrainingData(lambda: [((x,), None)])
    work = Workload(model, (x,), training=data, original=model)
    way = QuantizedDistillation(bits, bucket=bucket, steps=0)
    sites = way.sites(work, capture(work))
    return way.apply(work, sites).workload.model, [s.partition(":")[0] for s in sites.ok]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("bucket", [50, 256])
def test_bits_foretold_are_those_of_the_saved_file(bits, bucket, tmp_path):
    model = network()
    made, at = coded(model, bits, bucket)
    assert "4" in at
    file = tmp_path / "weights.safetensors"
    save_file({k: v.contiguous() for k, v in made.state_dict().items()}, file)
    data = file.read_bytes()
    header = int.from_bytes(data[:8], "little")
    payload = 8 * (len(data) - 8 - header)
    assert json.loads(data[8 : 8 + header])["4.weight"]["shape"] == [math.ceil(432 * 31 * bits / 8)]
    assert bs.total_bits(model, at, bits, bucket) == bs.payload_bits(made) == payload


def test_what_cannot_be_coded_is_refused():
    model = network()
    with pytest.raises(InputError, match="no weight"):
        bs.total_bits(model, ["2"], 4, 64)
    model[4].weight = nn.Parameter(torch.randn(31, 432))
    model.append(nn.Linear(432, 31))
    model[5].weight = model[4].weight
    with pytest.raises(InputError, match="shared"):
        bs.total_bits(model, ["5"], 4, 64)


def test_the_front_and_the_best_within_budgets():
    def at(bits, quality):
        return bs.Point("m", 4, 16, bits, quality)

    points = [at(30, 0.5), at(10, 0.1), at(20, 0.6), at(20, 0.4), at(40, 0.6), at(50, 0.9)]
    front = bs.pareto(points)
    assert [(p.total_bits, p.quality) for p in front] == [(10, 0.1), (20, 0.6), (50, 0.9)]
    best = bs.best_at(points, [5, 10, 45, 99])
    assert best[5] is None
    assert [best[b].quality for b in (10, 45, 99)] == [0.1, 0.6, 0.9]


def test_a_sweep_visits_every_model_and_precision():
    nets = {"a": network(), "b": nn.Sequential(nn.Flatten(), nn.Linear(64, 30))}
    x = torch.randn(4, 1, 8, 8)
    points = bs.sweep(
        nets,
        lambda m, bits: coded(m, bits)[0],
        lambda m: float(m(x).detach().abs().sum()),
        weight_bits=(8, 3),
        activation_bits=(16, 4),
    )
    assert [(p.model, p.weight_bits, p.activation_bits) for p in points] == [
        (m, w, a) for m in "ab" for w in (8, 3) for a in (16, 4)
    ]
    assert points[0].total_bits == points[1].total_bits > points[2].total_bits
    assert points[0].quality != points[1].quality
    assert points[0].quality == float(coded(nets["a"], 8)[0](x).detach().abs().sum())


def test_coded_inputs_are_rounded_and_then_floats_again():
    layer, x = nn.Linear(5, 5, bias=False), torch.randn(3, 5)
    nn.init.eye_(layer.weight)
    model = nn.Sequential(layer)
    with torch.no_grad(), bs.coded_inputs(model, 3):
        y = model(x)
    scale = x.abs().amax(1, keepdim=True) / 3
    torch.testing.assert_close(y, (x / scale).round() * scale)
    with torch.no_grad(), bs.coded_inputs(model, 16):
        assert torch.equal(model(x), x)
    assert not layer._forward_pre_hooks
    with pytest.raises(InputError), bs.coded_inputs(model, 1):
        raise AssertionError("not reached")


def test_diagnostics():
    a = torch.tensor([[[0.0, 1.0], [0.0, 1.0]], [[0.0, 1.0], [5.0, 1.0]]])
    b = torch.tensor([[[0.0, 1.0], [2.0, 1.0]], [[0.0, 1.0], [0.0, 1.0]]])
    assert bs.changed(a, b).tolist() == [0.0, 1.0]
    # Noise that outweighs the logits makes the choices, the same for both.
    assert bs.changed(a, b, torch.tensor([0.0, 99.0])).tolist() == [0.0, 0.0]
    assert bs.drift([torch.ones(4), torch.ones(4)], [torch.ones(4), torch.zeros(4)]) == [0.0, 1.0]
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    x = torch.randn(64, 4)
    found = bs.activation_variances(model, [((x,), {}), ((2 * x,), {})])
    assert found.shape == (2, 2)
    torch.testing.assert_close(found[1, 0], 4 * found[0, 0])
    with pytest.raises(InputError):
        bs.activation_variances(model, [])
    loud = bs.noisy(model, 0.5, 1)
    assert torch.equal(loud[0].weight, bs.noisy(model, 0.5, 1)[0].weight)
    assert not torch.equal(loud[0].weight, model[0].weight)
    assert torch.equal(bs.noisy(model, 0.0, 1)[0].weight, model[0].weight)


def test_samples_of_the_pixel_transformer_are_those_of_its_logits():
    torch.manual_seed(0)
    model = _pixels.PixelTransformer(16, 2).eval()
    classes, noise = torch.tensor([3, 7]), torch.randn(2, 64, 17)
    pixels, logits = model.sample(classes, noise)
    tokens = torch.cat(((classes + 17).unsqueeze(1), pixels[:, :-1]), 1)
    with torch.no_grad():
        whole = model(tokens)
    torch.testing.assert_close(logits, whole, rtol=1e-4, atol=1e-5)
    assert torch.equal((logits + noise).argmax(-1), pixels)
    # No pixel sees itself or a later one.
    other = tokens.clone()
    other[:, 10:] = 0
    with torch.no_grad():
        torch.testing.assert_close(model(other)[:, :10], whole[:, :10])
