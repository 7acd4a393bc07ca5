"""How a language model would be served on a device: what it stores, splits, streams, exchanges."""

from __future__ import annotations

from paredown.cost.serving import disaggregate, parallel, streaming
from paredown.cost.serving.composition import switch_seconds
from paredown.cost.serving.exchange import Exchange
from paredown.cost.serving.memory import behind, main
from paredown.cost.serving.model import LanguageModel
from paredown.device.device import Device
from paredown.errors import InputError, NotApplicable
from paredown.figure import Figure, counted, predicted
from paredown.result import ServingLink, ServingPlanDoc, ServingPool, ServingSplit

BYTES = parallel.BITS // 8


def plan(
    model: LanguageModel,
    device: Device,
    *,
    batch: int = 1,
    context: int = 4096,
    attention: Device | None = None,
) -> ServingPlanDoc:
    """Every way that the models of this package know, 16 bits per number.

    ``context`` tokens are read first, then tokens made one by one. ``attention`` names a device for
    the cache (`disaggregate`). Raises ``NotApplicable`` for a device without a memory for models.
    """
    if batch < 1 or context < 1:
        raise InputError(f"batch and context are at least 1, got {batch} and {context}")
    near = main(device)
    notes: list[str] = []
    weights = BYTES * model.parameters
    cache = batch * context * model.kv_bytes(parallel.BITS)
    short = weights + cache - near.capacity_bytes
    if short > 0:
        notes.append(
            f"does not fit {near.name} of {device.name}: weights {weights:,} B and cache "
            f"{cache:,.0f} B are {short:,.0f} B too many"
        )
    slower = behind(device)[1:]
    if device.count > 1 and not device.links:
        notes.append(f"{device.name} states no link: its devices do not share layers")
    return ServingPlanDoc(
        model=model.name,
        title=model.title,
        device=device.name,
        batch=batch,
        context=context,
        figures={
            "parameters": counted(model.parameters, "parameters"),
            "active parameters": counted(model.active_parameters, "parameters"),
            "weights": counted(weights, "B"),
            "cache per token": counted(model.kv_bytes(parallel.BITS), "B"),
            "MACs of a token at this context": counted(model.decode_macs(context), "MAC"),
            "sequences that fit": predicted(
                float(parallel.largest_batch(model, device, context=context)), "sequences"
            ),
        }
        | (
            {"switching to another model": predicted(switch_seconds(weights, device), "s")}
            if slower and slower[0].capacity_bytes >= weights
            else {}
        ),
        memory=near.name,
        fits=short <= 0,
        splits=_splits(model, device, batch, context) if short <= 0 else [],
        streamed=_streamed(model, device, context, notes) if short > 0 and slower else {},
        exchange=_exchange(model, device),
        pools=_pools(model, device, attention, context, notes) if attention else [],
        notes=notes,
    )


def _splits(model: LanguageModel, device: Device, batch: int, context: int) -> list[ServingSplit]:
    rows: list[ServingSplit] = []
    for split in parallel.splits(device):
        if split.tensor > 1 and not device.links:
            continue
        # As many micro-batches as stages keep all of them at work.
        micro = -(-batch // split.pipeline)
        rounds = -(-batch // micro)
        token = parallel.stage(model, device, split, batch=micro, context=context)
        prompt = parallel.stage(model, device, split, batch=1, context=0, tokens=context)
        filled = parallel.circulating(split.pipeline, batch, 1)
        each = max(split.pipeline, rounds) * token.seconds
        rows.append(
            ServingSplit(
                tensor=split.tensor,
                pipeline=split.pipeline,
                first_s=predicted(filled * prompt.seconds, "s"),
                token_s=predicted(each, "s"),
                tokens_s=predicted(batch / each, "tokens/s"),
                bound=token.bound,
            )
        )
    return rows


def _streamed(
    model: LanguageModel, device: Device, context: int, notes: list[str]
) -> dict[str, Figure]:
    try:
        level = streaming.home(model, device)
    except NotApplicable as e:
        notes.append(str(e))
        return {}
    if level is main(device):
        return {}
    most = streaming.largest_batch(model, device, tokens=context, cached=False)
    if not most:
        notes.append(f"not one sequence of {context} tokens fits beside two layers' weights")
        return {}
    found = streaming.streamed(model, device, batch=most, tokens=context)
    notes.append(
        f"weights are streamed from {level.name}: a pass of fewer than "
        f"{streaming.break_even(device, level):,.0f} tokens waits for them"
    )
    return {
        "break-even tokens": predicted(streaming.break_even(device, level), "tokens"),
        "largest prompt batch": predicted(float(most), "sequences"),
        "seconds of that pass": predicted(found.seconds, "s"),
        "tokens per second of that pass": predicted(found.tokens / found.seconds, "tokens/s"),
    }


def _exchange(model: LanguageModel, device: Device) -> list[ServingLink]:
    if model.experts is None:
        return []
    return [
        ServingLink(
            link=link.to,
            layer_s=predicted(Exchange().seconds(model, link.bytes_s), "s"),
            token_s=predicted(
                Exchange().token_seconds(model, link.bytes_s),
                "s",
                reason="32 tokens per device, FP8 out, BF16 back; one expert per device",
            ),
        )
        for link in device.links
    ]


def _pools(
    model: LanguageModel, device: Device, attention: Device, context: int, notes: list[str]
) -> list[ServingPool]:
    notes.append("devices are weighed by the price of the card alone; no host, network or power")
    plans = [
        (device.name, disaggregate.together(model, device, context=context)),
        (attention.name, disaggregate.together(model, attention, context=context)),
        (
            f"{device.name} and {attention.name}",
            disaggregate.apart(model, device, attention, context=context),
        ),
    ]
    return [
        ServingPool(
            devices=name,
            model=p.model,
            attention=p.attention,
            batch=p.batch,
            token_s=predicted(p.seconds, "s"),
            tokens_s=predicted(p.throughput, "tokens/s"),
            price_usd=p.price_usd,
            tokens_s_per_usd=predicted(p.per_dollar, "tokens/s/USD"),
            link_bytes_s=predicted(p.bytes_s, "B/s") if p.attention else None,
        )
        for name, p in plans
    ]
