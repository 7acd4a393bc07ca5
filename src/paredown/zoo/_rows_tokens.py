"""Rows of networks that replace attention or tokenise: NiNformer."""

from __future__ import annotations

from paredown.zoo._variant import Variant

ROWS: dict[str, Variant] = {
    "ninformer": Variant(
        "ninformer:NiNformer",
        "ninformer",
        image_size=32,
        paper_params=2_652_170,
        paper_macs=218_103_808 + 64 * 48 * 256 + 2_560,
        source="Abdullah-88/NiNformer (counted): four blocks, patches, classifier",
        fixed_size=True,
        sizes=(16, 24, 32),
    ),
}
