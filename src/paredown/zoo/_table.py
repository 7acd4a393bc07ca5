"""The table of architectures; modules are imported only when one of theirs is asked for."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from paredown.errors import InputError, UnknownName

if TYPE_CHECKING:
    from torch import Tensor, nn

# name -> (module:function, settings that the name stands for)
NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenetv2": ("mobilenetv2:MobileNetV2", {}),
    "mobilenetv2-1.4": ("mobilenetv2:MobileNetV2", {"width": 1.4}),
    "mobilenetv2-0.35": ("mobilenetv2:MobileNetV2", {"width": 0.35}),
    "vovnet27-slim": ("vovnet:vovnet", {"variant": "27-slim"}),
    "vovnet39": ("vovnet:vovnet", {"variant": "39"}),
    "vovnet57": ("vovnet:vovnet", {"variant": "57"}),
    "densenet121": ("densenet:DenseNet", {}),
    "resnet18": ("resnet:resnet", {"layers": 18}),
    "resnet34": ("resnet:resnet", {"layers": 34}),
    "resnet50": ("resnet:resnet", {"layers": 50}),
    "convnext-tiny": ("convnext:ConvNeXt", {}),
    "vit-ti": ("vit:vit", {"variant": "ti"}),
    "vit-s": ("vit:vit", {"variant": "s"}),
    "vit-b": ("vit:vit", {"variant": "b"}),
    "regnetx-400mf": ("regnet:regnetx", {"variant": "400mf"}),
}

IMAGE_SIZE = 224


def names() -> list[str]:
    """The names of all networks, sorted."""
    return sorted(NETWORKS)


def create(name: str, **settings: Any) -> nn.Module:
    """A network by name with untrained weights from torch's current seed.

    Settings are those of the network's constructor; every one takes ``num_classes`` and
    ``in_channels``. Raises ``UnknownName`` for a name that is not there and ``InputError`` for a
    setting that the network does not have.
    """
    if name not in NETWORKS:
        raise UnknownName("network", name, names())
    where, fixed = NETWORKS[name]
    module, _, factory = where.partition(":")
    build = getattr(importlib.import_module(f"paredown.zoo.{module}"), factory)
    try:
        return build(**{**fixed, **settings})
    except TypeError as e:
        raise InputError(f"zoo:{name}: {e}") from None


def example(
    name: str, *, batch: int = 1, image_size: int = IMAGE_SIZE, in_channels: int = 3
) -> tuple[Tensor, ...]:
    """Example inputs for a network: one seeded image ``(batch, in_channels, size, size)``."""
    import torch

    if name not in NETWORKS:
        raise UnknownName("network", name, names())
    shape = (batch, in_channels, image_size, image_size)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)
