"""Weights streamed from a slower memory layer by layer: models larger than the device's own.

ZeRO-Inference, DeepSpeed-Inference (Aminabadi et al. 2022, arXiv:2207.00032), section VI: weights
lie in host memory or on NVMe, layer k + 1 is fetched while layer k computes, and all of the
device's memory is for activations, so that a batch is large enough to hide the fetches.
"""

from __future__ import annotations

from dataclasses import dataclass

from paredown.cost.serving.memory import behind, main
from paredown.cost.serving.model import LanguageModel
from paredown.cost.tables import peak
from paredown.device.device import Device, Level
from paredown.errors import InputError, NotApplicable

BYTES = 2
"""Of a weight or activation: 16 bits."""


@dataclass(frozen=True)
class Pass:
    """One pass over all layers: seconds of fetching, of arithmetic, of both with prefetch."""

    level: str
    tokens: int
    fetch: float
    compute: float
    seconds: float
    synchronous: float

    def share(self, macs: float, rate: float) -> float:
        """Share of a peak ``rate`` that ``macs`` of work reach."""
        return macs / (self.seconds * rate)


def home(model: LanguageModel, device: Device) -> Level:
    """The nearest level that holds all weights. Raises ``NotApplicable`` where none does."""
    need = BYTES * model.parameters
    for level in behind(device):
        if level.capacity_bytes >= need:
            return level
    raise NotApplicable(
        f"{model.name} takes {need:,} B, {need - device.memory.capacity_bytes:,} B more than "
        f"the {device.memory.name} of {device.name}"
    )


def break_even(device: Device, level: Level) -> float:
    """Tokens of one pass at which products take as long as fetching the weights they use.

    Bytes per weight times the peak in MAC/s over the level's bandwidth.
    """
    return BYTES * peak(device, "float16") / level.read_bytes_s


def streamed(
    model: LanguageModel, device: Device, *, batch: int, tokens: int, context: int = 0
) -> Pass:
    """One pass of ``batch`` sequences with ``tokens`` new ones each, weights from their home level.

    With prefetch the first layer's fetch stands alone, then each layer takes the larger of its own
    products and the next one's fetch. Layers are taken as equal, the head as a part of them.
    """
    if batch < 1 or tokens < 1:
        raise InputError("a pass has at least one sequence and one token")
    level = home(model, device)
    new = batch * tokens
    seen = model.attention_macs(context + (tokens - 1) // 2)
    compute = new * (model.active_parameters + seen) / peak(device, "float16")
    near = main(device).read_bytes_s
    cache = batch * model.kv_bytes() * context
    compute = max(compute, (BYTES * model.active_parameters + cache) / near)
    here = level is main(device)
    fetch = 0.0 if here else BYTES * model.parameters / level.read_bytes_s
    each_fetch, each = fetch / model.layers, compute / model.layers
    hidden = each_fetch + (model.layers - 1) * max(each_fetch, each) + each
    return Pass(level.name, new, fetch, compute, hidden, fetch + compute)


def largest_batch(model: LanguageModel, device: Device, *, tokens: int, cached: bool) -> int:
    """Sequences of ``tokens`` tokens that fit beside two layers' weights in the main memory.

    Activations of one layer count: its input and output, queries, keys and values, and the inside
    of its MLP; with ``cached`` the keys and values of all layers as well.
    """
    layer = BYTES * model.parameters / model.layers
    room = main(device).capacity_bytes - 2 * layer
    wide = 5 * model.hidden + (2 if model.gated else 1) * model.width
    per_token = BYTES * wide + (model.kv_bytes() if cached else 0.0)
    return max(0, int(room // (tokens * per_token)))
