"""The table of networks; modules are imported only when one of theirs is asked for."""

from __future__ import annotations

import importlib
import math
from typing import TYPE_CHECKING, Any

from paredown.errors import InputError, UnknownName
from paredown.zoo import (
    _rows_baselines,
    _rows_classifiers,
    _rows_hybrids,
    _rows_papers,
    _rows_tasks,
    _rows_tokenizers,
    _rows_tokens,
    _rows_volumes,
)
from paredown.zoo._variant import Variant

if TYPE_CHECKING:
    from torch import Tensor, nn

NETWORKS: dict[str, Variant] = {
    **_rows_papers.ROWS,
    **_rows_classifiers.ROWS,
    **_rows_baselines.ROWS,
    **_rows_hybrids.ROWS,
    **_rows_tasks.ROWS,
    **_rows_volumes.ROWS,
    **_rows_tokens.ROWS,
    **_rows_tokenizers.ROWS,
}


def names() -> list[str]:
    """The names of all networks, sorted."""
    return sorted(NETWORKS)


def variant(name: str) -> Variant:
    """A network's row; ``UnknownName``, naming the nearest, for a name that is not there."""
    if name not in NETWORKS:
        raise UnknownName("network", name, names())
    return NETWORKS[name]


def create(name: str, **settings: Any) -> nn.Module:
    """A network by name with untrained weights from torch's current seed.

    Settings are those of the network's constructor; every one takes ``num_classes``,
    ``in_channels`` and, where it has stages, ``features_only``. Raises ``UnknownName`` for a name
    that is not there and ``InputError`` for a setting that the network does not have.
    """
    row = variant(name)
    try:
        return _found(row.build)(**{**row.settings, **settings})
    except TypeError as e:
        raise InputError(f"zoo:{name}: {e}") from None


def example(
    name: str,
    *,
    batch: int = 1,
    image_size: int | None = None,
    in_channels: int | None = None,
    frames: int | None = None,
) -> tuple[Tensor, ...]:
    """Example inputs for a network, seeded: one image ``(batch, in_channels, size, size)``.

    Networks for clips and volumes get ``(batch, in_channels, frames, size, size)``. Sizes and
    channels are the paper's unless given. Networks that take more (a diffusion step's time) get
    what they take.
    """
    import torch

    row = variant(name)
    size = row.image_size if image_size is None else image_size
    channels = row.in_channels if in_channels is None else in_channels
    if row.example:
        return _found(row.example)(batch=batch, image_size=size, in_channels=channels)
    shape = _shape(row.frames if frames is None else frames, batch, channels, size)
    return (torch.randn(shape, generator=torch.Generator().manual_seed(0)),)


def feature_info(name: str, **settings: Any) -> list[tuple[int, int]]:
    """Channels and stride of every map that ``features_only=True`` gives; allocates no weights.

    The stride is that of the width, to the nearest power of two, as unpadded convolutions cut a
    map's borders.
    Raises ``UnknownName``, and ``InputError`` for a network that has no maps to give.
    """
    import torch

    row = variant(name)
    with torch.device("meta"):
        model = create(name, features_only=True, **settings).eval()
        size = settings.get("image_size", row.image_size)
        channels = settings.get("in_channels", row.in_channels)
        maps = model(torch.empty(_shape(row.frames, 1, channels, size)))
    return [(m.shape[1], 2 ** round(math.log2(size / m.shape[-1]))) for m in maps]


def _shape(frames: int | None, batch: int, channels: int, size: int) -> tuple[int, ...]:
    return (batch, channels, *(() if frames is None else (frames,)), size, size)


def _found(where: str) -> Any:
    module, _, function = where.partition(":")
    return getattr(importlib.import_module(f"paredown.zoo.{module}"), function)
