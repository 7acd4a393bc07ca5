"""Number formats against torch's, NumPy's and ml_dtypes' own casts, and against counting."""

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from paredown.analysis.codes import decode, encode, numbers
from paredown.analysis.floats import FLOAT32, Float
from paredown.analysis.formats import FORMATS, Block, Fixed
from paredown.analysis.rounding import ROUNDINGS, rounded
from paredown.errors import InputError
from paredown.runtime import ops

TORCH = {
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "e5m2": torch.float8_e5m2,
    "e4m3fn": torch.float8_e4m3fn,
    "e4m3fnuz": torch.float8_e4m3fnuz,
    "e5m2fnuz": torch.float8_e5m2fnuz,
}
ML = {
    "bfloat16": ml_dtypes.bfloat16,
    "e5m2": ml_dtypes.float8_e5m2,
    "e4m3": ml_dtypes.float8_e4m3,
    "e4m3fn": ml_dtypes.float8_e4m3fn,
    "e4m3fnuz": ml_dtypes.float8_e4m3fnuz,
    "e5m2fnuz": ml_dtypes.float8_e5m2fnuz,
    "e3m2": ml_dtypes.float6_e3m2fn,
    "e2m3": ml_dtypes.float6_e2m3fn,
    "e2m1": ml_dtypes.float4_e2m1fn,
}
SMALL = {
    "ieee": Float(3, 2),
    "nan": Float(3, 2, specials="nan"),
    "unsigned-zero": Float(3, 2, specials="unsigned-zero"),
    "none": Float(2, 1, specials="none"),
    "saturating": Float(2, 2, saturate=True),
    "biased": Float(4, 1, bias=3),
    "powers": Float(3, 0, specials="none"),
}


def same(a, b):
    """Equal to the bit, any NaN being any other."""
    a, b = a.double(), b.double()
    nan = a.isnan() & b.isnan()
    return bool((nan | ((a == b) & (torch.signbit(a) == torch.signbit(b)))).all())


def hard_values(form):
    """Random values of every exponent, the format's numbers, the midpoints, and next to them."""
    gen = torch.Generator().manual_seed(0)
    exponent = torch.randint(-150, 128, (40000,), generator=gen).double()
    scattered = torch.randn(40000, generator=gen).double() * 2.0**exponent
    if form.bits <= 16:
        own = numbers(form)
        middle = (own[1:] + own[:-1]) / 2
        edge = torch.tensor([own[-1] * 1.5, own[-1] * 2, -own[-1] * 1.5], dtype=torch.float64)
        scattered = torch.cat([scattered, own, middle, edge])
    x = scattered.float()
    inf = torch.tensor([float("inf"), float("-inf"), float("nan"), 0.0, -0.0])
    up, down = torch.nextafter(x, inf[:1]), torch.nextafter(x, inf[1:2])
    return torch.cat([x, up, down, inf])


@pytest.mark.parametrize("name", TORCH)
def test_every_code_and_every_cast_equals_torch(name):
    form, dtype = FORMATS[name], TORCH[name]
    codes = torch.arange(2**form.bits)
    held = codes.to(torch.int16 if form.bits == 16 else torch.uint8).view(dtype)
    assert same(decode(form, codes), held.float())
    known = ~held.float().isnan()
    assert torch.equal(encode(form, held.float())[known], codes[known])
    # Torch's conversion to e4m3fn is OCP's saturating one, ml_dtypes' the other.
    form = replace(form, saturate=name == "e4m3fn")
    x = hard_values(form)
    assert same(form.round(x), x.to(dtype).float())


@pytest.mark.parametrize("name", ML)
def test_every_code_and_every_cast_equals_ml_dtypes(name):
    form, dtype = FORMATS[name], ML[name]
    codes = np.arange(2**form.bits).astype(np.uint16 if form.bits == 16 else np.uint8)
    with np.errstate(invalid="ignore"):
        held = torch.from_numpy(codes.view(dtype).astype(np.float64))
    assert same(decode(form, torch.from_numpy(codes.astype(np.int64))), held)
    x = hard_values(form)
    if form.specials == "none":
        x = x[~x.isnan()]  # NaN stays NaN here; ml_dtypes makes it zero
    assert same(form.round(x), torch.from_numpy(x.numpy().astype(dtype).astype(np.float64)))


def test_float64_is_rounded_once():
    """Through float32 first, 1 + 2**-11 + 2**-40 would be a tie and go down."""
    x = torch.tensor([1 + 2.0**-11 + 2.0**-40], dtype=torch.float64)
    assert FORMATS["float16"].round(x).item() == 1 + 2.0**-10
    gen = torch.Generator().manual_seed(0)
    exponent = torch.randint(-1074, 1024, (50000,), generator=gen).double()
    x = torch.randn(50000, dtype=torch.float64, generator=gen) * torch.exp2(exponent)
    assert same(FLOAT32.round(x), x.float())
    with np.errstate(over="ignore"):
        half = x.numpy().astype(np.float16)
    assert same(FORMATS["float16"].round(x), torch.from_numpy(half.astype(np.float64)))
    assert same(FORMATS["float64"].round(x), x)
    assert FORMATS["float64"].round(x.float()).dtype == torch.float64
    assert FORMATS["bfloat16"].round(x.bfloat16()).dtype == torch.float32


def by_counting(form, x, mode):
    """Rounding by looking for the neighbours among all numbers of a small format."""
    own = numbers(form).tolist()
    top = own[-1]
    saturates = form.saturate or form.specials == "none"
    step = top - own[-2]
    beyond = top + step  # the next number, had the format one more exponent
    low = max([v for v in (-beyond, *own, beyond) if v <= x], default=-beyond)
    high = min([v for v in (-beyond, *own, beyond) if v >= x], default=beyond)
    if low == high:
        y = low
    else:
        index = [-beyond, *own, beyond].index
        odd = {v: (index(v) - index(0.0)) % 2 for v in (low, high)}
        near = min((low, high), key=lambda v: abs(v - x))
        tie = abs(low - x) == abs(high - x)
        small, large = sorted((low, high), key=abs)
        even = low if odd[low] == 0 else high
        y = {
            "nearest-even": even if tie else near,
            "nearest-zero": small if tie else near,
            "nearest-away": large if tie else near,
            "up": high,
            "down": low,
            "zero": small,
            "odd": low if odd[low] else high,
        }[mode]
    if abs(y) == beyond:
        if saturates or mode == "odd":
            return top if y > 0 else -top
        return (float("inf") if form.specials == "ieee" else float("nan")) * np.sign(y)
    return y


@pytest.mark.parametrize("kind", SMALL)
def test_every_mode_equals_counting(kind):
    for mode in ROUNDINGS:
        # Without significand bits no number has a last bit that could be even or odd.
        if mode not in ("stochastic", "coin", *(("nearest-even", "odd") * (kind == "powers"))):
            equals_counting(SMALL[kind], mode)


def equals_counting(form, mode):
    own = numbers(form)
    between = [a + (b - a) * t for a, b in itertools.pairwise(own) for t in (0.25, 0.5, 0.75)]
    last = own[-1] + (own[-1] - own[-2]) * torch.tensor([0.25, 0.5, 0.75])
    x = torch.cat([own, torch.stack(between), last, -last]).double()
    want = torch.tensor([by_counting(form, v, mode) for v in x.tolist()]).double()
    got = form.round(x, mode)
    nan = want.isnan() & got.isnan()
    wrong = ~(nan | (got == want))
    assert not wrong.any(), (mode, x[wrong].tolist(), want[wrong].tolist(), got[wrong].tolist())
    assert same(form.round(x.float(), mode), got)


@pytest.mark.parametrize("name", ["float16", "e4m3fn", "e2m1", "int8", "int4"])
def test_idempotent_and_between_the_directed_modes(name):
    form = FORMATS[name]
    gen = torch.Generator().manual_seed(1)
    x = torch.randn(4096, generator=gen) * form.largest / 8
    x = x.clamp(-form.largest, form.largest)
    down, up = form.round(x, "down"), form.round(x, "up")
    assert bool((down <= x).all() & (x <= up).all())
    for mode in ROUNDINGS:
        y = form.round(x, mode, gen)
        assert torch.equal(form.round(y, mode, gen), y), mode
        assert bool(((y == down) | (y == up)).all()), mode
        if mode not in ("stochastic", "coin"):
            assert bool((form.round(x.sort()[0], mode).diff() >= 0).all()), mode


def test_stochastic_is_unbiased_and_coin_is_even():
    form, n = FORMATS["e4m3fn"], 200_000
    gen = torch.Generator().manual_seed(3)
    for value, step in ((1.03, 0.125), (-3.6, 0.25), (0.0021, 2.0**-9)):
        x = torch.full((n,), value)
        y = form.round(x, "stochastic", gen).double()
        assert y.unique().numel() == 2
        assert abs(float(y.mean()) - value) < 4 * float(y.std()) / n**0.5
        y = form.round(x, "coin", gen).double()
        assert abs(float(y.mean()) - float(y.unique().mean())) < 4 * (step / 2) / n**0.5
    again = [form.round(x, "stochastic", torch.Generator().manual_seed(7)) for _ in range(2)]
    assert torch.equal(*again)


def test_subnormals_are_flushed_where_there_are_none():
    form = Float(5, 10, subnormals=False)
    x = torch.tensor([2.0**-14, 2.0**-14 * (1 - 2.0**-12), 2.0**-15, -(2.0**-20), -0.0])
    for mode in ("nearest-even", "zero", "up"):
        y = form.round(x, mode)
        assert y[0] == 2.0**-14
        assert same(y[2:], torch.tensor([0.0, -0.0, -0.0]))
    assert form.round(x)[1] == 2.0**-14  # rounded up to the smallest normal first
    assert form.round(x, "zero")[1] == 0
    assert form.smallest == 2.0**-14 < 1
    with pytest.raises(InputError, match="round it first"):
        encode(form, x)


def test_overflow_as_ieee_says():
    form = FORMATS["float16"]
    x = torch.tensor([65504.0, 65519.0, 65520.0, 1e6, -1e6])
    inf = float("inf")
    assert form.round(x).tolist() == [65504, 65504, inf, inf, -inf]
    assert form.round(x, "nearest-zero").tolist() == [65504, 65504, 65504, inf, -inf]
    assert form.round(x, "up").tolist() == [65504, inf, inf, inf, -65504]
    assert form.round(x, "down").tolist() == [65504] * 4 + [-inf]
    assert form.round(x, "zero").tolist() == [65504] * 4 + [-65504]
    wide, last = Float(11, 20), torch.full((2,), 1.7976931348623157e308, dtype=torch.float64)
    last[0] = wide.largest
    assert wide.round(last).tolist() == [wide.largest, inf]
    assert wide.round(-last, "up").tolist() == [-wide.largest] * 2
    assert wide.round(last, "down").tolist() == [wide.largest] * 2
    whole = Float(5, 10, saturate=True)
    assert whole.round(torch.tensor([inf, -inf, 1e6])).tolist() == [65504, -65504, 65504]
    assert whole.round(torch.tensor([float("nan")])).isnan().all()


@pytest.mark.parametrize("form", [Fixed(2, 3), Fixed(7), Fixed(4, 0, signed=False), Fixed(0, 4)])
def test_fixed_point_equals_counting(form):
    low, top = (c * 2.0**-form.fraction for c in form.codes)
    assert form.bits == np.log2(form.codes[1] - form.codes[0] + 1)
    x = torch.linspace(low * 1.3 - 1, top * 1.3, 1001).double()
    q = x * 2.0**form.fraction
    for mode in ("nearest-even", "up", "down", "zero", "nearest-away"):
        want = (rounded(q, mode) * 2.0**-form.fraction).clamp(low, top)
        assert torch.equal(form.round(x, mode), want)
    around = Fixed(form.integer, form.fraction, form.signed, saturate=False).round(x)
    period = top - low + 2.0**-form.fraction
    turns = (torch.round(q) * 2.0**-form.fraction - around) / period
    assert torch.equal(turns, turns.round())
    assert bool((around >= low).all() & (around <= top).all())


def test_integers_are_those_of_the_quantizers():
    """The reference operator rounds as the integer format does."""
    gen = torch.Generator().manual_seed(0)
    x, scale = torch.randn(64, 33, generator=gen), torch.tensor([0.02])
    q = ops.quantize(x, scale, torch.zeros(1, dtype=torch.int32), -127, 127, -1)
    assert torch.equal(Fixed(7, symmetric=True).round(x / scale), q.float())
    q = ops.quantize(x, scale, torch.tensor([11], dtype=torch.int32), 0, 255, -1)
    assert torch.equal(Fixed(8, signed=False).round(rounded(x / scale) + 11), q.float())


def test_blocks_share_a_power_of_two():
    form = FORMATS["mxfp4"]
    assert form.bits == 4.25
    noise = torch.randn(8, 32, generator=torch.Generator().manual_seed(1))
    assert torch.equal(form.round(form.round(noise)), form.round(noise))
    x = torch.zeros(2, 40)
    x[0, 0], x[0, 1], x[0, 35] = 7.9, 0.3, 0.03
    y = form.round(x)
    # 7.9 has exponent 2 as e2m1's largest, 6: the scale is 1 and 7.9 saturates.
    assert (y[0, 0], y[0, 1]) == (6.0, 0.5)
    # The block at the end is of 8 values: 0.03 = 1.92 * 2**-6, the scale 2**-8, 7.68 saturates.
    assert y[0, 35] == 6 * 2.0**-8
    assert not y[1].any()
    gen = torch.Generator().manual_seed(0)
    x = torch.randn(16, 64, generator=gen)
    for name in ("mxfp8", "mxfp6", "mxfp4", "mxint8"):
        assert torch.equal(FORMATS[name].round(x * 2.0**20), FORMATS[name].round(x) * 2.0**20)
    whole = Block(Fixed(1, 6, symmetric=True), 64).round(x)
    step = 2.0 ** (torch.floor(torch.log2(x.abs().amax(1, keepdim=True))) - 6)
    assert torch.equal(whole, (x / step).round().clamp(-127, 127) * step)


def test_nan_passes_and_wrong_formats_do_not():
    for form in FORMATS.values():
        assert form.round(torch.tensor([float("nan"), 1.0])).isnan().tolist()[0]
    for wrong in (
        lambda: Float(0, 3),
        lambda: Float(12, 3),
        lambda: Float(1, 3),
        lambda: Float(4, 0, specials="nan"),
        lambda: Float(11, 3, bias=2000),
        lambda: Float(4, 3, specials="posit"),
        lambda: Fixed(0),
        lambda: Fixed(3, symmetric=True, signed=False),
        lambda: FORMATS["float16"].round(torch.ones(1), "half-up"),
        lambda: encode(FORMATS["e2m1"], torch.tensor([0.7])),
        lambda: encode(FORMATS["e2m1"], torch.tensor([float("nan")])),
        lambda: encode(FORMATS["e4m3fn"], torch.tensor([float("inf")])),
        lambda: numbers(FLOAT32),
    ):
        with pytest.raises(InputError):
            wrong()
