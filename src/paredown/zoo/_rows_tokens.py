"""Rows of networks that put something else in attention's place: NiNformer, Terminator."""

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
    "terminator": Variant(
        "terminator:Terminator",
        "hyperzzw-terminator",
        image_size=32,
        source="no count published; hyperevolnet/Terminator's CIFAR-10 configuration",
        fixed_size=True,
        sizes=(12, 16, 20),
    ),
}
