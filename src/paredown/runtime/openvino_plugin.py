"""OpenVINO's CPU plugin: its import, types and hints, compiling, and what it keeps to itself."""

from __future__ import annotations

from functools import cache
from typing import Any

import numpy as np
import torch

from paredown.errors import LoweringError, MissingExtra
from paredown.runtime._quiet import no_telemetry

TORCH_TYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "boolean": torch.bool,
}
OV_TYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}


def openvino() -> Any:
    """The module, its telemetry off. Raises ``MissingExtra`` without it."""
    no_telemetry()
    try:
        import openvino
    except ImportError:
        raise MissingExtra("openvino", "openvino", "the openvino backend") from None
    return openvino


def hints(precision: str, threads: int, dynamic: bool) -> dict[str, Any]:
    """What the plugin is told; ``dynamic`` lets it quantize activations by itself."""
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Left alone the plugin quantizes activations beside compressed weights on its own.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32 if dynamic else 0,
    }


def compile_model(model: Any, hints: dict[str, Any]) -> Any:
    """A model compiled for the CPU. Raises ``LoweringError`` with the plugin's own words."""
    import openvino as ov

    try:
        return ov.Core().compile_model(model, "CPU", hints)
    except RuntimeError as e:
        raise LoweringError(f"openvino cannot compile the model: {reason(e)}") from e


@cache
def quantizes_inside(columns: int) -> bool:
    """Whether the plugin really quantizes activations beside int8 weights of that many columns.

    It does not say so anywhere; a small product that comes out otherwise with the hint on does.
    """
    import openvino as ov
    import openvino.opset15 as ops

    random = np.random.default_rng(0)
    weight = ops.convert(
        ops.constant(random.integers(-127, 128, (32, columns)).astype(np.int8)), "f32"
    )
    scaled = ops.multiply(weight, ops.constant(np.full((32, 1), 0.01, np.float32)))
    x = ops.parameter([1, 16, columns], np.float32)
    build: Any = ov.Model
    model = build([ops.matmul(x, scaled, False, True)], [x])
    data = random.normal(size=(1, 16, columns)).astype(np.float32)
    plain, quantized = (
        compile_model(model, hints("f32", 1, on))([data])[0] for on in (False, True)
    )
    return not np.allclose(plain, quantized, rtol=1e-4, atol=1e-4)


def partial_shape(example: torch.Tensor) -> Any:
    """An example's shape as an ``ov.PartialShape``, every dimension fixed."""
    import openvino as ov

    return ov.PartialShape(list(example.shape))


def shared_tensor(leaf: torch.Tensor) -> Any:
    """An ``ov.Tensor`` over a contiguous torch tensor's memory, which the caller keeps alive."""
    import openvino as ov

    if leaf.dtype == torch.bfloat16:
        return ov.Tensor(leaf.view(torch.int16).numpy(), ov.Shape(list(leaf.shape)), ov.Type.bf16)
    return ov.Tensor(leaf.numpy(), shared_memory=True)


def reason(e: BaseException) -> str:
    """The line of an OpenVINO error that says what is wrong."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    telling = [
        x for x in lines if "No conversion rule" in x or "not supported" in x or "Summary" in x
    ]
    return (telling or lines or [type(e).__name__])[0]
