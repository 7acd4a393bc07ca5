"""Many whole models and a router on one node: which fit where, what switching between them costs.

SambaNova SN40L (Prabhakar et al. 2024, arXiv:2405.07518): a composition of experts keeps all models
in a large slow memory and those in use in a fast one. A request takes the router, the copy of its
expert where that was not in fast memory, the prompt and the tokens.

The fast level is a device's main memory, the slow one that behind it: HBM and DDR of an SN40L node,
HBM and host memory of a GPU node.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass
from math import ceil

from paredown.cost.serving.memory import behind, main
from paredown.cost.serving.model import LanguageModel
from paredown.cost.tables import peak
from paredown.device.device import Device, Level
from paredown.errors import InputError, NotApplicable


@dataclass(frozen=True)
class Request:
    """Seconds of one request, part by part."""

    router: float
    switch: float
    prefill: float
    decode: float

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.router + self.switch + self.prefill + self.decode


def tiers(device: Device) -> tuple[Level, Level]:
    """The fast and the slow level. Raises ``NotApplicable`` for a device with one level."""
    found = behind(device)
    if len(found) < 2:
        raise NotApplicable(f"{device.name} has one memory for models: nothing to switch from")
    return found[0], found[1]


def switch_seconds(nbytes: float, device: Device) -> float:
    """Seconds to copy a model of so many bytes from the slow level to the fast one."""
    return nbytes / tiers(device)[1].read_bytes_s


def slots(device: Device, nbytes: float, reserved: float = 0.0) -> int:
    """Models of so many bytes that the fast level holds beside ``reserved`` bytes."""
    return max(0, int((tiers(device)[0].capacity_bytes - reserved) // nbytes))


def footprint(total_bytes: float, node_bytes: float) -> int:
    """Nodes that hold so many bytes in a level of ``node_bytes``."""
    if not node_bytes > 0:
        raise InputError(f"a level holds more than 0 B, got {node_bytes}")
    return ceil(total_bytes / node_bytes)


def misses(requests: Iterable[int], places: int) -> int:
    """Copies that a sequence of requests needs when the least recently used model makes room."""
    if places < 1:
        raise NotApplicable("the fast level does not hold one model")
    there: OrderedDict[int, None] = OrderedDict()
    count = 0
    for model in requests:
        if model in there:
            there.move_to_end(model)
            continue
        count += 1
        if len(there) == places:
            there.popitem(last=False)
        there[model] = None
    return count


def step_seconds(model: LanguageModel, device: Device, tokens: int, context: int) -> float:
    """Seconds of one pass of ``tokens`` tokens over ``context`` cached ones, 16 bits per number.

    The larger of products at the device's peak and of weights and cache from the fast level: a
    bound that launches and the network between chips come on top of.
    """
    macs = tokens * (model.active_parameters + model.attention_macs(context))
    moved = 2 * model.active_parameters + model.kv_bytes() * context
    fast = main(device)
    return max(macs / peak(device, "bfloat16"), moved / fast.read_bytes_s)


def request(
    expert: LanguageModel,
    device: Device,
    *,
    prompt: int,
    output: int,
    miss_share: float,
    router: LanguageModel | None = None,
) -> Request:
    """The mean request to a composition: ``miss_share`` of them copy their expert first."""
    if not 0 <= miss_share <= 1:
        raise InputError(f"miss_share lies in [0, 1], got {miss_share}")
    asked = step_seconds(router or expert, device, prompt, prompt)
    decode = sum(step_seconds(expert, device, 1, prompt + i) for i in range(1, output))
    prefill = step_seconds(expert, device, prompt, prompt)
    copied = miss_share * switch_seconds(2 * expert.parameters, device)
    return Request(asked, copied, prefill, decode)
