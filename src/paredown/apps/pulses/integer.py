"""A network of convolutions, dense layers and ReLU in integers alone: int8, int32, multiply, shift.

PulseDL-II (Ai et al. 2022, arXiv:2209.00884): weights and activations of 8 bits, sums of 32, per
layer one scale that is realised as an integer product and a right shift, rounding half up, ReLU
part of it; a subset of what frameworks quantize (Jacob et al. 2018, arXiv:1712.05877), so that
training is theirs. The last layer gives its sums.

Deviations: activations have a zero point (inputs and ReLU use all 256 codes); transposed
convolutions are left out, the paper's list of layers could not be looked up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from paredown.errors import InputError

LOW, HIGH = -128, 127
MULTIPLIER_BITS = 15


class Layer(nn.Module):
    """A 1-D convolution (a dense layer is one over its whole input) with fake quantization.

    ``fake`` False: plain float. Ranges of activations are running means of what was seen.
    """

    def __init__(self, inputs: int, outputs: int, taps: int, stride: int, *, relu: bool) -> None:
        super().__init__()
        self.conv = nn.Conv1d(inputs, outputs, taps, stride)
        self.relu, self.fake = relu, False
        self.register_buffer("top", torch.zeros(()))

    @property
    def weight_scale(self) -> Tensor:
        """One code of the weights."""
        return self.conv.weight.detach().abs().amax().clamp(min=1e-8) / HIGH

    @property
    def scale(self) -> Tensor:
        """One code of the activations, which run from 0 to ``top``."""
        top: Any = self.top
        return (top / (HIGH - LOW)).clamp(min=1e-8)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, inputs, length) to (batch, outputs, fewer)."""
        w = self.conv.weight
        if self.fake:
            w = torch.fake_quantize_per_tensor_affine(w, float(self.weight_scale), 0, LOW, HIGH)
        y = F.conv1d(x, w, self.conv.bias, self.conv.stride)
        if not self.relu:
            return y
        y = torch.relu(y)
        if self.training:
            seen = y.detach().amax()
            top: Any = self.top
            self.top = torch.where(top > 0, 0.98 * top + 0.02 * seen, seen)
        if self.fake:
            y = torch.fake_quantize_per_tensor_affine(y, float(self.scale), LOW, LOW, HIGH)
        return y


class PulseNet(nn.Module):
    """Strided convolutions, then two dense layers: arrival and amplitude, each around 0.

    ``top`` is the largest input. Input (batch, samples).
    """

    def __init__(
        self, samples: int = 48, channels: Sequence[int] = (8, 16, 16), hidden: int = 32,
        taps: int = 5, top: float = 1.06,
    ) -> None:  # fmt: skip
        super().__init__()
        parts: list[Layer] = []
        held, length = 1, samples
        for width in channels:
            parts.append(Layer(held, width, taps, 2, relu=True))
            held, length = width, (length - taps) // 2 + 1
        if length < 1:
            raise InputError(f"{samples} samples are too few for {len(channels)} strided layers")
        parts.append(Layer(held, hidden, length, 1, relu=True))
        parts.append(Layer(hidden, 2, 1, 1, relu=False))
        self.layers = nn.ModuleList(parts)
        self.top, self.fake = top, False

    def quantizing(self, on: bool = True) -> PulseNet:
        """Turn fake quantization on or off, input included."""
        self.fake = on
        for layer in self.layers:
            layer.fake = on  # type: ignore[assignment]
        return self

    def forward(self, x: Tensor) -> Tensor:
        """(batch, 2): arrival and amplitude."""
        if self.fake:
            step = self.top / (HIGH - LOW)
            x = torch.fake_quantize_per_tensor_affine(x, step, LOW, LOW, HIGH)
        x = x[:, None]
        for layer in self.layers:
            x = layer(x)
        return x[..., 0]


@dataclass(frozen=True)
class IntegerLayer:
    """One layer's numbers: codes of weights (outputs, inputs, taps), biases in sums' units.

    A result is ``LOW + (sum * multiplier + half) >> shift``, cut to 8 bits (ReLU: the lowest code
    stands for 0); without ReLU it is the sum, worth ``unit`` each.
    """

    weight: NDArray[np.int8]
    bias: NDArray[np.int32]
    stride: int
    relu: bool
    multiplier: int
    shift: int
    unit: float


@dataclass(frozen=True)
class IntegerNet:
    """A network in integers; inputs are ``round(x / step) + LOW``."""

    step: float
    layers: tuple[IntegerLayer, ...]

    def codes(self, waves: NDArray[np.float32]) -> NDArray[np.int8]:
        """The input's codes (batch, 1, samples)."""
        # As fake quantization rounds: half to even, in single precision.
        x = np.rint(waves.astype(np.float32) * np.float32(1 / self.step)) + LOW
        return np.clip(x, LOW, HIGH).astype(np.int8)[:, None]

    def sums(self, waves: NDArray[np.float32], *, native: bool = False) -> NDArray[np.int32]:
        """The last layer's sums (batch, outputs); ``native``: products by torch's int8 kernel."""
        x = self.codes(waves)
        for layer in self.layers:
            x = _run(layer, x, _native if native else _reference)
        return x[..., 0].astype(np.int32)

    def __call__(self, waves: NDArray[np.float32], *, native: bool = False) -> NDArray[np.float64]:
        """What the network says (batch, outputs), in the units it was trained on."""
        return self.sums(waves, native=native).astype(np.float64) * self.layers[-1].unit

    def to_plain(self) -> dict[str, Any]:
        """Everything as lists and numbers, to be written as JSON."""
        rows = [
            {k: v.tolist() if isinstance(v, np.ndarray) else v for k, v in asdict(x).items()}
            for x in self.layers
        ]
        return {"step": self.step, "layers": rows}

    @staticmethod
    def from_plain(data: dict[str, Any]) -> IntegerNet:
        """The network of `to_plain`. Raises ``InputError`` for one that lacks a part."""
        try:
            rows: list[dict[str, Any]] = [dict(r) for r in data["layers"]]
            for row in rows:
                row["weight"] = np.array(row["weight"], np.int8)
                row["bias"] = np.array(row["bias"], np.int32)
            return IntegerNet(float(data["step"]), tuple(IntegerLayer(**row) for row in rows))
        except (KeyError, TypeError, ValueError, OverflowError) as e:
            raise InputError(f"not an integer network: {type(e).__name__}: {e}") from None


def exported(net: PulseNet) -> IntegerNet:
    """The trained network's integers. Raises ``InputError`` where ranges were never seen."""
    before = net.top / (HIGH - LOW)
    step, found = before, []
    for layer in net.layers:
        assert isinstance(layer, Layer)
        weight_scale = float(layer.weight_scale)
        unit = weight_scale * before
        codes = torch.round(layer.conv.weight.detach() / weight_scale).clamp(LOW, HIGH)
        assert layer.conv.bias is not None
        bias = np.rint(layer.conv.bias.detach().double().numpy() / unit)
        multiplier, shift = 1, 0
        if layer.relu:
            if not float(layer.top) > 0:
                raise InputError("a layer's range was never seen: train before exporting")
            multiplier, shift = scaled(unit / float(layer.scale))
            before = float(layer.scale)
        found.append(
            IntegerLayer(codes.numpy().astype(np.int8), bias.astype(np.int32),
                         int(layer.conv.stride[0]), layer.relu, multiplier, shift, unit)
        )  # fmt: skip
    return IntegerNet(step, tuple(found))


def scaled(factor: float) -> tuple[int, int]:
    """``(multiplier, shift)``, at most 15 bits, with multiplier / 2^shift nearest to ``factor``."""
    if not 0 < factor < 1:
        raise InputError(f"a layer's scale lies in 0 to 1, got {factor}")
    mantissa, exponent = np.frexp(factor)
    multiplier = round(float(mantissa) * 2**MULTIPLIER_BITS)
    return multiplier, MULTIPLIER_BITS - int(exponent)


def _run(layer: IntegerLayer, x: NDArray[np.int8], product: Any) -> NDArray[Any]:
    taps = layer.weight.shape[2]
    windows = np.lib.stride_tricks.sliding_window_view(x, taps, axis=2)[:, :, :: layer.stride]
    batch, inputs, length, _ = windows.shape
    rows = windows.transpose(0, 2, 1, 3).reshape(batch * length, inputs * taps)
    flat = layer.weight.reshape(len(layer.weight), -1)
    # Codes stand LOW away from what they mean: the products of that are a constant.
    sums = product(rows, flat) - LOW * flat.astype(np.int64).sum(1) + layer.bias
    if np.abs(sums).max(initial=0) > np.iinfo(np.int32).max:
        raise InputError("a sum exceeds 32 bits")
    if layer.relu:
        half = (1 << layer.shift) >> 1
        sums = np.clip(LOW + ((sums * layer.multiplier + half) >> layer.shift), LOW, HIGH)
    kind = np.int8 if layer.relu else np.int32
    return sums.reshape(batch, length, -1).transpose(0, 2, 1).astype(kind)


def _reference(rows: NDArray[np.int8], weight: NDArray[np.int8]) -> NDArray[np.int64]:
    return rows.astype(np.int64) @ weight.astype(np.int64).T


def _native(rows: NDArray[np.int8], weight: NDArray[np.int8]) -> NDArray[np.int64]:
    a, b = torch.from_numpy(rows.copy()), torch.from_numpy(weight.T.copy())
    return torch.ops.aten._int_mm(a, b).numpy().astype(np.int64)
