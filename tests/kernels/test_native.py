"""Native probes: every instruction set agrees with the scalar reference, at odd sizes; dispatch."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from paredown import kernels
from paredown.errors import InputError

native = kernels.native()
pytestmark = pytest.mark.skipif(native is None, reason=kernels.why_missing() or "")
LEVELS = native.levels() if native is not None else []
SIZES = [0, 1, 3, 7, 17, 31, 32, 63, 64, 65, 255, 511, 513, 1025, 4099]


def _rng(size: int) -> np.random.Generator:
    return np.random.default_rng(1000 + size)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("n", SIZES)
def test_integer_dot_is_exact(isa: str, n: int) -> None:
    rng = _rng(n)
    a = rng.integers(0, 256, n, dtype=np.uint8)
    b = rng.integers(-128, 128, n, dtype=np.int8)
    expected = int(a.astype(np.int64) @ b.astype(np.int64)) if n else 0
    assert native.dot_i8(a, b, isa) == expected


@pytest.mark.parametrize("isa", LEVELS)
def test_integer_dot_does_not_saturate(isa: str) -> None:
    """The 16-bit products of the classic maddubs path overflow on these values."""
    a, b = np.full(64, 255, np.uint8), np.full(64, -128, np.int8)
    assert native.dot_i8(a, b, isa) == 64 * 255 * -128


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("n", SIZES)
def test_float_dot_agrees_with_the_scalar_one(isa: str, n: int) -> None:
    rng = _rng(n)
    a, b = rng.standard_normal(n, dtype=np.float32), rng.standard_normal(n, dtype=np.float32)
    exact = float(a.astype(np.float64) @ b.astype(np.float64)) if n else 0.0
    bound = 1e-6 * (1 + float(np.abs(a) @ np.abs(b)) if n else 1)
    assert native.dot_f32(a, b, "scalar") == pytest.approx(exact, abs=bound)
    assert native.dot_f32(a, b, isa) == pytest.approx(exact, abs=bound)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("n", SIZES)
def test_bfloat16_dot_agrees_with_the_scalar_one(isa: str, n: int) -> None:
    rng = _rng(n)
    bits = [(rng.standard_normal(n, dtype=np.float32).view(np.uint32) >> 16) for _ in range(2)]
    a, b = (x.astype(np.uint16) for x in bits)
    wide = [(x.astype(np.uint32) << 16).view(np.float32).astype(np.float64) for x in (a, b)]
    exact = float(wide[0] @ wide[1]) if n else 0.0
    bound = 1e-5 * (1 + float(np.abs(wide[0]) @ np.abs(wide[1])) if n else 1)
    assert native.dot_bf16(a, b, isa) == pytest.approx(exact, abs=bound)


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize(
    ("m", "n", "k"), [(1, 1, 1), (16, 16, 64), (3, 5, 7), (16, 1, 63), (1, 16, 4), (13, 11, 61)]
)
def test_tile_product_is_exact(isa: str, m: int, n: int, k: int) -> None:
    rng = _rng(m * n * k)
    a = rng.integers(-128, 128, (m, k), dtype=np.int8)
    b = rng.integers(-128, 128, (k, n), dtype=np.int8)
    out = np.full((m, n), -(1 << 31), np.int32)
    native.tile_i8(a, b, out, isa)
    assert (out == a.astype(np.int32) @ b.astype(np.int32)).all()


def test_tile_product_refuses_shapes_that_do_not_fit() -> None:
    a, b = np.zeros((4, 8), np.int8), np.zeros((9, 4), np.int8)
    with pytest.raises(ValueError, match="do not fit together"):
        native.tile_i8(a, b, np.zeros((4, 4), np.int32), "scalar")
    big = np.zeros((17, 8), np.int8)
    with pytest.raises(ValueError, match=r"1\.\.16"):
        native.tile_i8(big, np.zeros((8, 4), np.int8), np.zeros((17, 4), np.int32), "scalar")


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("size", [*SIZES, 100_003])
@pytest.mark.parametrize("offset", [0, 1, 5])
def test_reading_sums_every_byte(isa: str, size: int, offset: int) -> None:
    data = _rng(size).integers(0, 256, size + offset, dtype=np.uint8)[offset:]
    padded = np.concatenate([data, np.zeros(-size % 8, np.uint8)])
    expected = int(padded.view(np.uint64).sum(dtype=np.uint64))
    assert native.read_sum(data, isa) == expected


@pytest.mark.parametrize("isa", LEVELS)
@pytest.mark.parametrize("size", SIZES)
def test_writing_and_copying_touch_just_their_bytes(isa: str, size: int) -> None:
    guarded = np.full(size + 2, 7, np.uint8)
    native.fill(guarded[1:-1], 0xAB, isa)
    assert (guarded[1:-1] == 0xAB).all()
    assert guarded[0] == guarded[-1] == 7
    source = _rng(size).integers(0, 256, size, dtype=np.uint8)
    native.copy(guarded[1:-1], source, isa)
    assert (guarded[1:-1] == source).all()
    assert guarded[0] == guarded[-1] == 7


@pytest.mark.parametrize("isa", LEVELS)
def test_peaks_rise_with_the_instruction_set(isa: str) -> None:
    rate = native.peak("float32", isa, [_core()], 0.03)
    assert rate["rounds"] >= 3
    assert 0 < rate["median"] <= rate["best"]
    scalar = native.peak("float32", "scalar", [_core()], 0.03)["best"]
    # Vectors do at least four times the scalar work on any machine.
    assert isa == "scalar" or _reaches(4 * scalar, lambda: _peak("float32", isa))


def test_units_that_a_level_lacks_are_none_not_zero() -> None:
    assert native.peak("bfloat16", "scalar", [_core()], 0.01) is None
    with pytest.raises(ValueError, match="no probe"):
        native.peak("float4", "scalar", [_core()], 0.01)


@pytest.mark.amx
@pytest.mark.skipif("amx" not in LEVELS, reason="no AMX here")
def test_tiles_outrun_vectors() -> None:
    assert _reaches(3 * _peak("int8", "avx512_vnni"), lambda: _peak("int8", "amx"))


@pytest.mark.parametrize("kind", ["read", "write", "copy"])
def test_bandwidth_falls_off_the_caches(kind: str) -> None:
    isa = LEVELS[-1]
    far = native.bandwidth(kind, 256 << 20, isa, [_core()], 0.05)["best"]
    assert far > 0
    near = lambda: native.bandwidth(kind, 24 << 10, isa, [_core()], 0.05)["best"]  # noqa: E731
    assert _reaches(1.5 * far, near)


def test_bandwidth_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="read, write or copy"):
        native.bandwidth("erase", 4096, "scalar", [_core()], 0.01)
    with pytest.raises(ValueError, match="at least 128 bytes"):
        native.bandwidth("read", 64, "scalar", [_core()], 0.01)
    with pytest.raises(ValueError, match="at least one core"):
        native.peak("float32", "scalar", [], 0.01)


@pytest.mark.parametrize("isa", LEVELS)
def test_environment_chooses_the_level(isa: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAREDOWN_ISA", isa)
    assert kernels.isa() == isa


def test_environment_with_an_unknown_level_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PAREDOWN_ISA", "sse9")
    with pytest.raises(InputError, match=r"sse9.*usable: scalar"):
        kernels.isa()
    with pytest.raises(ValueError, match="sse9"):
        native.read_sum(np.zeros(8, np.uint8), "sse9")


def test_the_best_level_is_the_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PAREDOWN_ISA", raising=False)
    assert kernels.isa() == LEVELS[-1]
    assert list(kernels.LEVELS)[: len(LEVELS)] == LEVELS


def test_levels_follow_the_kernel_s_flags() -> None:
    """What cpuid says is no more than what Linux lists for this processor."""
    from paredown.measure.fingerprint import fingerprint

    flags = set(fingerprint(probe=False).isa)
    for feature in ("avx2", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_int8"):
        if feature in native.features():
            assert feature in flags


def _peak(dtype: str, isa: str) -> float:
    return native.peak(dtype, isa, [_core()], 0.05)["best"]


def _reaches(floor: float, rate: Callable[[], float]) -> bool:
    """Whether a rate gets above a floor in one of twenty tries: others may hold the core."""
    return any(rate() > floor for _ in range(20))


def _core() -> int:
    from paredown.measure.fingerprint import cores

    return cores()[0]
