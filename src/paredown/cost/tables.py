"""Defaults of the cost model, used where a device file or calibration says nothing.

Efficiencies are the share of the peak that a kind of operator typically reaches on two to sixteen
CPU cores at batch 1; a calibrated device overrides each through
``efficiency["backend/kind/dtype"]`` or ``["backend/kind"]``. They order candidates; they are never
reported as measured.
"""

from __future__ import annotations

from paredown.device.device import Device

COMPILED = frozenset({"inductor", "onnxruntime", "openvino", "native"})
"""Backends that fuse pointwise operators into what produced their input."""

INTEGER = frozenset({"onnxruntime", "openvino", "native"})
"""Backends that run a product between dequantized tensors as an integer product."""

EFFICIENCY: dict[str, float] = {
    "conv": 0.35,
    "depthwise": 0.06,
    "linear": 0.5,
    "matmul": 0.35,
    "attention": 0.25,
    "recurrent": 0.2,
}

FACTOR: dict[str, float] = {
    "eager": 1.0,
    "inductor": 1.1,
    "onnxruntime": 1.1,
    "openvino": 1.5,
    "native": 1.5,
}
"""How a backend's kernels compare with eager's where neither was calibrated."""

DTYPE_FACTOR: dict[str, float] = {"bfloat16": 0.6, "float16": 0.6, "int8": 0.5}
"""Narrow types have far higher peaks (AMX) that small problems reach less of."""

OVERHEAD_S: dict[str, float] = {
    "eager": 6e-6,
    "inductor": 2e-6,
    "onnxruntime": 3e-6,
    "openvino": 2e-6,
    "native": 1e-6,
}

VIEW_OVERHEAD = 0.25
"""What a view costs beside a real operator, in eager (compiled backends have no views)."""

TRANSCENDENTAL = 8.0
"""Simple operations that an exp-like function takes, vectorised."""

_WIDER = {
    "float16": ("bfloat16", "float32"),
    "bfloat16": ("float32",),
    "int8": ("float32",),
    "float64": ("float32",),
}
_SAME = {
    "uint8": "int8",
    "qint8": "int8",
    "quint8": "int8",
    "float": "float32",
    "complex64": "float32",
    "complex128": "float64",
}


def executed_dtype(dtype: str) -> str:
    """The name under which devices state a peak: every 8-bit integer is ``int8``."""
    return _SAME.get(dtype, dtype)


def has_rate(device: Device, dtype: str) -> bool:
    """Whether a device states a rate for a dtype or for a wider one that stands in."""
    dtype = executed_dtype(dtype)
    return any(d in device.peak_macs_s for d in (dtype, *_WIDER.get(dtype, ("float32",))))


def peak(device: Device, dtype: str) -> float:
    """MAC/s for a dtype; a type without its own units runs at the rate of the next wider one.

    float64 runs at half the rate of float32 where the device does not say.
    """
    dtype = executed_dtype(dtype)
    for name in (dtype, *_WIDER.get(dtype, ("float32",))):
        if name in device.peak_macs_s:
            return device.peak_macs_s[name] * (0.5 if dtype == "float64" and name != dtype else 1.0)
    return max(device.peak_macs_s.values())


def efficiency(device: Device, backend: str, kind: str, dtype: str) -> float:
    """Share of the peak that ``backend`` reaches on ``kind``: calibrated, else the default."""
    dtype = executed_dtype(dtype)
    for key in (f"{backend}/{kind}/{dtype}", f"{backend}/{kind}"):
        if key in device.efficiency:
            return device.efficiency[key]
    near = device.efficiency.get(f"{backend}/{kind}/bfloat16")
    if near is not None and dtype in ("int8", "float16"):
        return near  # the same units at the same shapes: closer than any default
    default = EFFICIENCY.get(kind, 0.3) * FACTOR.get(backend, 1.0) * DTYPE_FACTOR.get(dtype, 1.0)
    return min(default, 0.95)


def overhead(device: Device, backend: str) -> float:
    """Seconds that one operator call costs beside its work.

    A backend that the device does not state costs its default, scaled as a stated one is to its
    own: a host that is slow to call in eager is slow to call in all of them.
    """
    if backend in device.overhead_s:
        return device.overhead_s[backend]
    stated = [device.overhead_s[b] / s for b, s in OVERHEAD_S.items() if b in device.overhead_s]
    return OVERHEAD_S.get(backend, 5e-6) * (stated[0] if stated else 1.0)
