"""A decoder over many devices: tensor and pipeline parallel time per step, pipeline schedules.

DeepSpeed-Inference (Aminabadi et al. 2022, arXiv:2207.00032). Section IV: tensor parallelism splits
every layer's matrices, with two all-reduces of the activations per layer; pipeline parallelism
splits the layers, and generation keeps micro-batches going round without draining the pipeline at
each token; the prompt takes more micro-batches than generation (hybrid scheduling). Section V:
all-to-all of experts coordinated with tensor parallelism.

A layer takes the larger of products at the peak and of weights and cache over the memory bandwidth,
of one device, plus its all-reduces (ring). Deviations: no overlap of the two, launches left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from paredown.cost.serving.memory import main
from paredown.cost.serving.model import LanguageModel
from paredown.cost.tables import peak
from paredown.device.device import Device, Link
from paredown.errors import InputError, NotApplicable

BITS = 16


@dataclass(frozen=True)
class Split:
    """Devices that share every layer (``tensor``), times those that share the layers."""

    tensor: int = 1
    pipeline: int = 1

    def __post_init__(self) -> None:
        if self.tensor < 1 or self.pipeline < 1:
            raise InputError(f"a split has at least one device each way, got {self}")

    @property
    def devices(self) -> int:
        """Devices in all."""
        return self.tensor * self.pipeline


@dataclass(frozen=True)
class Stage:
    """Seconds of one micro-batch in the slowest stage, and what limits a layer of it."""

    compute: float
    memory: float
    link: float

    @property
    def seconds(self) -> float:
        """Time of the stage."""
        return max(self.compute, self.memory) + self.link

    @property
    def bound(self) -> str:
        """What takes most of it."""
        parts = {"compute": self.compute, "memory": self.memory, "link": self.link}
        return max(parts, key=lambda k: parts[k])


def all_reduce(nbytes: float, devices: int, link: Link | None) -> float:
    """Seconds of a ring all-reduce: 2 (n - 1) / n of the bytes, 2 (n - 1) latencies."""
    if devices == 1:
        return 0.0
    if link is None:
        raise NotApplicable("the device states no link: its layers cannot be shared")
    steps = 2 * (devices - 1)
    return steps / devices * nbytes / link.bytes_s + steps * link.latency_s


def splits(device: Device) -> list[Split]:
    """Every split of a node's devices into powers of two, tensor parallelism first."""
    found: list[Split] = []
    tensor = device.count
    while tensor >= 1:
        if device.count % tensor == 0:
            found.append(Split(tensor, device.count // tensor))
        tensor //= 2
    return found


def stage(
    model: LanguageModel,
    device: Device,
    split: Split,
    *,
    batch: int,
    context: int,
    tokens: int = 1,
) -> Stage:
    """One micro-batch of ``batch`` sequences, ``tokens`` new ones each after ``context`` others.

    The last stage multiplies by the head too; whichever takes longer counts. Rates are of one
    device of the node, its first link joins them. Experts are read as far as the tokens reach them.
    """
    share = split.tensor / device.count
    rate = peak(device, "bfloat16") * share
    bytes_s = main(device).read_bytes_s * share
    layers = ceil(model.layers / split.pipeline)
    new = batch * tokens
    head = model.vocabulary * model.hidden
    body = model.active_parameters - head
    seen = model.attention_macs(context + (tokens - 1) // 2, absorbed=tokens == 1)
    weights = touched(model, new)
    part = layers / model.layers
    macs = part * new * (body + seen) + new * head
    moved = BITS / 8 * (part * weights + head)
    moved += part * batch * model.kv_bytes(BITS) * (context + tokens)
    link = device.links[0] if device.links else None
    reduce = all_reduce(new * model.hidden * BITS / 8, split.tensor, link)
    return Stage(macs / rate, moved / bytes_s, 2 * layers * reduce)


def touched(model: LanguageModel, tokens: int) -> float:
    """Weights of the layers that ``tokens`` tokens read: of experts those that some token reaches.

    Experts are taken to be drawn alike: each is missed by all with chance (1 - active / routed)^n.
    """
    body = model.layers * model.attention_weights + model.mlp_weights(active=False)
    e = model.experts
    if e is None:
        return float(body)
    each = (3 if model.gated else 2) * model.hidden * e.width
    missed = (1 - e.active / e.routed) ** tokens
    return body - (model.layers - e.dense_layers) * e.routed * each * missed


def fits(model: LanguageModel, device: Device, split: Split, *, batch: int, context: int) -> bool:
    """Whether weights and cache of ``batch`` sequences fit the main memory of the devices."""
    room = main(device).capacity_bytes * split.devices / device.count
    return room >= BITS / 8 * model.parameters + batch * context * model.kv_bytes(BITS)


def largest_batch(model: LanguageModel, device: Device, *, context: int) -> int:
    """Sequences of ``context`` tokens that fit beside the weights; 0 where these do not."""
    room = main(device).capacity_bytes - BITS / 8 * model.parameters
    return max(0, int(room // (context * model.kv_bytes(BITS))))


def circulating(stages: int, batches: int, tokens: int) -> int:
    """Stage times until the last token of ``batches`` micro-batches that never wait to drain.

    Each token of a micro-batch follows its last one: a round takes as many as there are stages or
    micro-batches, whichever is more (figure 2b).
    """
    return (tokens - 1) * max(stages, batches) + stages + batches - 1


def draining(stages: int, batches: int, tokens: int) -> int:
    """The same where all micro-batches end a token before the next begins (figure 2a)."""
    return tokens * (stages + batches - 1)


@dataclass(frozen=True)
class Slot:
    """One micro-batch's token in one stage, from ``start`` for one stage time."""

    start: int
    stage: int
    batch: int
    token: int


def simulate(stages: int, batches: int, tokens: int, *, drain: bool = False) -> list[Slot]:
    """The schedule itself: tokens in order, first come first served, one at a time per stage."""
    if min(stages, batches, tokens) < 1:
        raise InputError("a schedule has at least one stage, micro-batch and token")
    free = [0] * stages
    ready = [0] * batches
    slots: list[Slot] = []
    for token in range(tokens):
        if drain:
            ready = [max(ready)] * batches
        for batch in range(batches):
            at = ready[batch]
            for where in range(stages):
                at = max(at, free[where])
                slots.append(Slot(at, where, batch, token))
                free[where] = at = at + 1
            ready[batch] = at
    return slots


def exchange_steps(devices: int, tensor: int) -> tuple[int, int]:
    """Messages of an all-to-all over ``devices``: plain, and coordinated with tensor parallelism.

    Data are the same on the ``tensor`` devices of a group: p steps become p / L within equal ranks
    and L of an all-gather (section V-B).
    """
    if devices % tensor:
        raise InputError(f"{devices} devices are no multiple of {tensor}")
    return devices, devices // tensor + tensor
