"""Attention on other devices than the weights: time, bandwidth between them, throughput per dollar.

Attention offloading, Lamina (Chen et al. 2024, arXiv:2405.01814): in decoding, products with
weights gain from a batch, attention over the cache does not. The first stay on devices with fast
products, the cache and attention move to devices with cheap bandwidth; queries, keys and values go
out, one attention output comes back, layer by layer (sections 3 and 4).

Two batches in turn keep both pools at work: a step then takes the longer of its two parts.
Deviations: both pools divide their work evenly, the exchange hides behind the other batch's work as
long as the link is no slower than `least_bandwidth` asks.
"""

from __future__ import annotations

from dataclasses import dataclass

from paredown.cost.serving.memory import main
from paredown.cost.serving.model import LanguageModel
from paredown.cost.serving.parallel import BITS, all_reduce, touched
from paredown.cost.tables import peak
from paredown.device.device import Device
from paredown.errors import InputError, NotApplicable

BYTES = BITS / 8
MOST = 64
"""Devices of one kind that a plan considers."""


@dataclass(frozen=True)
class Pool:
    """Devices for the weights and for attention; ``attention`` 0 keeps both on the first."""

    model: int
    attention: int
    batch: int
    """Sequences in flight, all batches together."""
    seconds: float
    """Of one token of every sequence in flight."""
    price_usd: float
    bytes_s: float
    """What the link between the pools must carry."""

    @property
    def throughput(self) -> float:
        """Tokens per second."""
        return self.batch / self.seconds

    @property
    def per_dollar(self) -> float:
        """Tokens per second and dollar of price."""
        return self.throughput / self.price_usd


def exchanged(model: LanguageModel) -> float:
    """Bytes per token and sequence between the pools: queries, new keys and values, and results.

    Equal to bytes x (2 + 2 / G) x hidden x layers for grouped queries with G heads per KV head. Of
    latent attention, queries and results as they meet the latents.
    """
    if model.latent is not None:
        m = model.latent
        values = model.heads * (2 * m.kv_rank + m.rope_dim) + model.cached_per_layer
    else:
        values = 2 * model.heads * model.head_dim + model.cached_per_layer
    return BYTES * model.layers * values


def model_seconds(model: LanguageModel, device: Device, count: int, batch: int) -> float:
    """The part with weights: products at the peak or weights read, and all-reduces of a ring."""
    head = model.vocabulary * model.hidden
    compute = batch * model.active_parameters / peak(device, "bfloat16") / count
    memory = BYTES * (touched(model, batch) + head) / main(device).read_bytes_s / count
    link = device.links[0] if device.links else None
    reduce = all_reduce(batch * model.hidden * BYTES, count, link)
    return max(compute, memory) + 2 * model.layers * reduce


def attention_seconds(
    model: LanguageModel, device: Device, count: int, batch: int, context: int
) -> float:
    """The part with the cache: read once, or multiplied, whichever takes longer."""
    read = batch * context * model.kv_bytes(BITS) / main(device).read_bytes_s
    macs = batch * model.attention_macs(context, absorbed=True)
    return max(read, macs / peak(device, "bfloat16")) / count


def together(
    model: LanguageModel, device: Device, *, context: int, limit_s: float | None = None
) -> Pool:
    """The best number of equal devices that hold weights and cache: most throughput per dollar.

    ``limit_s`` bounds the seconds of a token. Raises ``NotApplicable`` where none will do.
    """
    found: Pool | None = None
    price = _price(device)
    for count in range(1, MOST + 1):
        room = count * main(device).capacity_bytes - BYTES * model.parameters
        most = int(room // (context * model.kv_bytes(BITS)))
        for batch in _batches(most):
            seconds = model_seconds(model, device, count, batch)
            seconds += attention_seconds(model, device, count, batch, context)
            if limit_s is None or seconds <= limit_s:
                found = _better(found, Pool(count, 0, batch, seconds, count * price, 0.0))
    if found is None:
        raise NotApplicable(_none(model, context, limit_s, device.name))
    return found


def apart(
    model: LanguageModel,
    device: Device,
    memory: Device,
    *,
    context: int,
    limit_s: float | None = None,
) -> Pool:
    """The best numbers of devices for weights (``device``) and for attention (``memory``).

    Two batches are in flight. ``limit_s`` bounds the seconds of a token, both parts one after the
    other. Raises ``NotApplicable`` where none will do.
    """
    found: Pool | None = None
    for count in range(1, MOST // 4 + 1):
        if count * main(device).capacity_bytes < BYTES * model.parameters:
            continue
        for others in range(1, MOST + 1):
            room = others * main(memory).capacity_bytes
            most = int(room // (2 * context * model.kv_bytes(BITS)))
            price = count * _price(device) + others * _price(memory)
            for batch in _batches(most):
                first = model_seconds(model, device, count, batch)
                second = attention_seconds(model, memory, others, batch, context)
                if limit_s is not None and first + second > limit_s:
                    continue
                step = 2 * max(first, second)
                need = least_bandwidth(model, batch, first + second)
                found = _better(found, Pool(count, others, 2 * batch, step, price, need))
    if found is None:
        raise NotApplicable(_none(model, context, limit_s, f"{device.name} and {memory.name}"))
    return found


def least_bandwidth(model: LanguageModel, batch: int, seconds: float, share: float = 0.2) -> float:
    """Bytes per second between the pools with which the exchange takes ``share`` of a step."""
    if not 0 < share <= 1 or not seconds > 0:
        raise InputError(f"a share of (0, 1] of a positive time is needed, got {share}, {seconds}")
    return batch * exchanged(model) / (share * seconds)


def _batches(most: int) -> list[int]:
    """Powers of two and one and a half of them, and the most."""
    sizes = {b for i in range(20) for b in (1 << i, 3 << i) if b <= most}
    return sorted(sizes | ({most} if most > 0 else set()))


def _better(found: Pool | None, new: Pool) -> Pool:
    return new if found is None or new.per_dollar > found.per_dollar else found


def _price(device: Device) -> float:
    if device.price_usd is None:
        raise NotApplicable(f"{device.name} states no price_usd: nothing to weigh it by")
    return device.price_usd


def _none(model: LanguageModel, context: int, limit_s: float | None, where: str) -> str:
    within = f" within {limit_s:g} s per token" if limit_s is not None else ""
    return f"no number of {where} serves {model.name} at a context of {context}{within}"
