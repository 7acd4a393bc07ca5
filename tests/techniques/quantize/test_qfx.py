"""Fixed point: integers equal the emulation bit for bit, gradients of points, few-digit weights."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown import runtime
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.runtime import fixed_point as fp
from paredown.techniques.quantize import fixed_training as ft
from paredown.techniques.quantize.qfx import QFX
from paredown.workload import TrainingData, Workload


def done(technique, workload):
    return technique.apply(workload, technique.sites(workload, capture(workload)))


class Residual(nn.Module):
    """Every function that has an integer form."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8)
        self.body = nn.Conv2d(8, 8, 3, padding="same", dilation=2, groups=4)
        self.act, self.pool = nn.ReLU6(), nn.MaxPool2d(3, 2, 1)
        self.flat, self.mean = nn.Flatten(), nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.pool(x + self.act(self.body(x)))
        x = torch.cat([self.mean(x), F.avg_pool2d(x, 4)], 1)
        return self.head(self.flat(x))


def residual():
    """A network of odd statistics, with data to train on."""
    torch.manual_seed(0)
    model = Residual().eval()
    nn.init.normal_(model.norm.running_mean, 0, 0.3)
    nn.init.uniform_(model.norm.running_var, 0.5, 2)
    x = torch.randn(64, 3, 16, 16)
    pairs = [((a,), model(a).argmax(1)) for a in x.split(16)]
    data = TrainingData(lambda: pairs, F.cross_entropy)
    return Workload(model, (x[:9],), training=data, original=model, calibration=[x])


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("overflow", ["saturate", "wrap"])
@pytest.mark.parametrize("rounding", ["round", "truncate"])
def test_casts_of_floats_and_of_codes_agree_at_every_code(rounding, overflow, signed):
    word = fp.Word(4, signed, rounding, overflow)
    codes = torch.arange(-300, 301)
    for source, to in ((5, 2), (5, 5), (2, 5), (1, -2)):
        wide = fp.Codes(codes, source)
        got = wide.cast(word, to)
        assert torch.equal(fp.cast(wide.floats(), word, to), got.floats())
        assert int(got.values.min()) >= word.codes[0]
        assert int(got.values.max()) <= word.codes[1]
    # ap_fixed's modes by hand: 1.5, -1.5 and 9 with no bits behind the point
    seen = fp.cast(torch.tensor([1.5, -1.5, 9.0]), word, 0).tolist()
    up, low = rounding == "round", word.codes[0]
    first = [2.0, -1.0] if up else [1.0, -2.0]
    if not signed:
        first[1] = 0.0 if overflow == "saturate" else 16.0 + first[1]
    last = 9.0 if not signed else (7.0 if overflow == "saturate" else 9.0 - 16)
    assert seen == [*first, last], (low, seen)


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_few_digit_codes_are_all_there_are(bits):
    codes = fp.hot_codes(bits, 0)
    planes = fp.digits(codes, bits)
    places = 2 ** torch.arange(bits + 1)
    assert torch.equal((planes * places[:, None]).sum(0), codes)
    assert int((planes[1:] * planes[:-1]).abs().max()) == 0, "no two digits side by side"
    powers = [s << e for e in range(bits + 1) for s in (1, -1)] + [0]
    low, high = fp.Word(bits).codes
    one = sorted({p for p in powers if low <= p <= high})
    two = sorted({a + b for a in powers for b in powers if low <= a + b <= high})
    assert fp.hot_codes(bits, 1).tolist() == one
    assert fp.hot_codes(bits, 2).tolist() == two


def test_the_gradient_of_a_point_is_that_of_the_smoothed_error():
    torch.manual_seed(0)
    x = torch.randn(200_000, dtype=torch.float64)
    for start in (3, 5, 6):
        f = torch.tensor(float(start), dtype=torch.float64, requires_grad=True)
        (ft.trained_cast(x, f, fp.Word(6)) - x).square().sum().backward()
        got = float(f.grad) * math.sqrt(x.numel() * 32)

        def error(at):
            scale = 2.0**at
            return float(((x * scale).round().clamp(-32, 31) / scale - x).square().sum())

        slope = (error(start + 0.05) - error(start - 0.05)) / 0.1
        assert got == pytest.approx(slope, rel=0.05)
    # values pass where they are in range, and saturated ones do not
    y = torch.tensor([0.3, 99.0], requires_grad=True)
    ft.trained_cast(y, torch.tensor(3.0), fp.Word(6)).sum().backward()
    assert y.grad.tolist() == [1.0, 0.0]


@pytest.mark.parametrize(
    "knobs",
    [
        {},
        {"rounding": "truncate", "overflow": "wrap", "start": "range"},
        {"hot": 1, "bits": 5},
        {"hot": 2, "weight_bits": 6},
        {"weight_bits": 3, "bits": 4},
    ],
)
def test_the_integer_run_is_the_emulation_bit_for_bit(knobs):
    workload = residual()
    want = workload.call()
    change = done(QFX(steps=3, **knobs), workload)
    assert torch.equal(workload.call(), want), "the caller's network is as it was"
    got = change.workload.call()
    assert torch.equal(fp.run_in_integers(change.workload.model, *workload.inputs), got)
    assert got.unique().numel() > 5
    for module in change.workload.model.modules():
        if hasattr(module, "numbers"):
            n = module.numbers
            codes = module.codes().values
            assert n.hot == 0 or int(fp.digits(codes, n.weight_bits).abs().sum(0).max()) <= n.hot
            assert n.bias_fraction <= n.fraction + n.weight_fraction


def test_eight_bits_stay_near_the_floats_and_the_file_is_small(tmp_path):
    workload = residual()
    want = workload.call()
    eight, four = (done(QFX(b, b, steps=0), workload) for b in (8, 4))
    off = [float((c.workload.call() - want).abs().max()) for c in (eight, four)]
    assert off[0] < 0.05 * float(want.abs().max()) < off[1]
    sites = QFX().sites(workload, capture(workload))
    run = runtime.backend("eager").lower(four.workload.copy(), threads=1)
    assert torch.equal(run(*workload.inputs), four.workload.call())
    assert list(run.realised("qfx", sites.ok).kept) == list(sites.ok)
    workload.training = None
    again = QFX(4, 4, steps=0).rewrite(workload, sites, four.decisions)
    assert torch.equal(again.workload.call(), four.workload.call())


def test_learned_points_bring_a_coarse_network_back():
    workload = residual()
    want = workload.call()
    off = {}
    for steps in (0, 60):
        way = QFX(3, 3, steps=steps, lr=2e-3, task=0.0, start="range")
        change = done(way, workload)
        off[steps] = float((change.workload.call() - want).square().mean())
        words = change.decisions.values["words"]
        off[f"points {steps}"] = [w["fraction"] for w in words.values()]
    assert off[60] < 0.7 * off[0]
    assert off["points 60"] != off["points 0"]


def test_it_says_where_it_cannot():
    workload = residual()
    workload.model.train()
    refused = QFX().sites(workload, capture(workload)).refused
    assert "by its batch" in refused["norm:weight"]
    model = nn.Sequential(nn.Linear(4, 4), nn.Softmax(-1)).eval()
    soft = Workload(model, (torch.randn(8, 4),), training=workload.training)
    change = done(QFX(steps=0), soft)
    with pytest.raises(InputError, match="softmax has no integer form"):
        fp.run_in_integers(change.workload.model, *soft.inputs)
    wide = fp.Codes(torch.full((1, 400), 2**11), 0)
    with pytest.raises(InputError, match="exactly"):
        wide.product(fp.Codes(torch.full((1, 400), 127), 0), lambda a, b: a @ b.T, 0)
    for wrong in ({"bits": 1}, {"weight_bits": 9}, {"hot": 9}, {"start": "no"}, {"steps": -1},
                  {"rounding": "up"}, {"overflow": "no"}):  # fmt: skip
        with pytest.raises(InputError):
            QFX(**wrong)
