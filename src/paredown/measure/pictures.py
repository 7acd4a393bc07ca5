"""Pictures to be served: made from a seed, stored as JPEG or PNG; decoded, resized, normalised.

Stages of Beyond Inference (arXiv:2403.12981) on the CPU with Pillow; the paper decodes and resizes
with DALI on a GPU. Pictures are sums of smooth noise of all scales, whose spectrum falls as that of
photographs does, since a codec's work depends on it.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from paredown.errors import InputError, MissingExtra

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from paredown.measure.served import Spans, Work

Codec = Literal["jpeg", "png"]
FALL = 0.4
"""Exponent by which the noise of a scale falls: set so that files have the size of photographs'."""
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def require() -> Any:
    """Pillow's ``Image``. Raises ``MissingExtra``."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtra("Pillow", "images", "decoding pictures") from None
    return Image


def picture(pixels: int, seed: int = 0) -> NDArray[np.uint8]:
    """A square picture (pixels, pixels, 3): noise of all scales, the coarse ones strongest."""
    if pixels < 8:
        raise InputError(f"a picture has at least 8 pixels a side, got {pixels}")
    image = require()
    rng = np.random.default_rng(seed)
    total = np.zeros((pixels, pixels, 3), np.float32)
    cells = 2
    while cells <= pixels:
        # The finest scale comes from a tile: drawing 27 million numbers would take longer.
        side = min(cells, 512)
        small = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        whole = image.fromarray(small).resize((pixels, pixels), image.Resampling.BICUBIC)
        total += (np.asarray(whole, np.float32) - 127.5) / cells**FALL
        cells *= 4
    spread = 2 * float(total.std())
    return np.clip(127.5 * (1 + total / spread), 0, 255).astype(np.uint8)


def stored(pixels: int, codec: Codec = "jpeg", seed: int = 0) -> NDArray[np.uint8]:
    """The bytes of a picture's file; JPEG at quality 85."""
    image = require()
    out = io.BytesIO()
    image.fromarray(picture(pixels, seed)).save(out, codec.upper(), quality=85)
    return np.frombuffer(out.getvalue(), np.uint8)


def preprocess(
    height: int, width: int, channels: int = 3, *, draft: bool = False, decoded: Sequence[Any] = ()
) -> Callable[[], Work]:
    """What one worker does to a file's bytes: an array (channels, height, width), float32.

    ``draft`` lets a JPEG be decoded at an eighth, a quarter or half of its size where that is no
    smaller than asked; ``decoded``: Pillow's images, and the payload says which is served. Bilinear
    with antialiasing.
    """
    image = require()
    mode = "RGB" if channels == 3 else "L"
    mean = np.asarray(MEAN[:channels], np.float32)[:, None, None]
    std = np.asarray(STD[:channels], np.float32)[:, None, None]

    def one(payload: NDArray[Any], spans: Spans) -> list[NDArray[Any]]:
        if decoded:
            found = decoded[int(payload[0])]
        else:
            with spans.span("decode"):
                found = image.open(io.BytesIO(payload.tobytes()))
                if draft:
                    found.draft(mode, (width, height))
                found = found.convert(mode)
        with spans.span("resize"):
            found = found.resize((width, height), image.Resampling.BILINEAR)
        with spans.span("normalise"):
            array = np.asarray(found, np.float32).reshape(height, width, channels)
            array = (array.transpose(2, 0, 1) / 255 - mean) / std
            array = np.ascontiguousarray(array)
        return [array]

    def make() -> Work:
        return lambda payloads, spans: [one(p, spans) for p in payloads]

    return make
