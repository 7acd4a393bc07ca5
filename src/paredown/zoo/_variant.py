"""One row of the zoo's table: a network with the paper's figures beside it. No torch here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A named network.

    ``build`` is ``module:function`` inside the zoo, called with ``settings`` and the user's own.
    ``paper`` is a key of the catalogue, or ``arXiv:...`` of a baseline that has no entry.

    ``paper_params`` and ``paper_macs`` are the figures to be met within 0.5 %: the authors' own, or
    the count of public code where the paper rounds; ``source`` says which. MACs are of
    convolutions, linears and matrix products at ``image_size``, batch 1. ``why`` is the reason
    where they differ by more.

    ``fixed_size`` marks networks built for one size (they take ``image_size``); ``sizes`` are small
    ones that the tests run at. ``frames`` are those of a clip, or the slices of a volume: the input
    is then ``(batch, in_channels, frames, image_size, image_size)``. ``example`` is
    ``module:function`` making the inputs (``batch``, ``image_size``, ``in_channels`` as keywords)
    of a network that takes more than one image. ``reference`` is the public name of the same
    network, as ``timm:resnet50``.
    """

    build: str
    paper: str
    settings: Mapping[str, Any] = field(default_factory=dict[str, Any])
    image_size: int = 224
    frames: int | None = None
    in_channels: int = 3
    paper_params: int | None = None
    paper_macs: int | None = None
    source: str = ""
    why: str = ""
    fixed_size: bool = False
    sizes: tuple[int, ...] = (45, 56, 64)
    example: str = ""
    reference: str = ""
