"""Rows of the networks that restore, detect and generate: MAXIM, DRCT, LeYOLO, DiCo."""

from __future__ import annotations

from paredown.zoo._variant import Variant


def _maxim(variant: str, scales: int, params: int, gigaflops: float, source: str) -> Variant:
    return Variant(
        "maxim:maxim",
        "maxim",
        {"variant": variant, "scales": scales},
        image_size=256,
        paper_params=params,
        paper_macs=round(gigaflops * 1e9 / 2),
        source=source,
        why=(
            "the compiler's count that the authors print has elementwise work (norms, activations, "
            "gates, resizing) in it: what is over grows with the channels, not their square"
        ),
        sizes=(64, 128, 192),
    )


def _drct(variant: str, scale: int, params: int, gigamacs: float | None) -> Variant:
    return Variant(
        "drct:drct",
        "drct",
        {"variant": variant, "scale": scale},
        image_size=64,
        paper_params=params,
        paper_macs=None if gigamacs is None else round(gigamacs * 1e9),
        source=(
            "the authors' DRCT (counted); the 7.92G and 11.07G they print are near the "
            "convolutions alone, without linears and attention"
        ),
        sizes=(16, 20, 32),
    )


def _dico(variant: str, params: int, printed: float) -> Variant:
    return Variant(
        "dico:dico",
        "dico",
        {"variant": variant},
        image_size=32,
        in_channels=4,
        paper_params=params,
        paper_macs=round(printed * 1e9),
        source=(
            "the authors' DiCo (parameters counted); MACs are the FLOPs of the paper's table, "
            "of 256 x 256 images"
        ),
        sizes=(8, 16, 24),
        example="dit:example",
    )


COMMENTS = "comments in the authors' maxim.py (one supervised scale)"
README = "the authors' README, parameters counted from their code (three supervised scales)"

ROWS: dict[str, Variant] = {
    "maxim-s1": _maxim("s1", 1, 6_108_515, 93.163716608, COMMENTS),
    "maxim-s2": _maxim("s2", 1, 13_353_830, 206.743273472, COMMENTS),
    "maxim-s3": _maxim("s3", 1, 20_599_145, 320.321945600, COMMENTS),
    "maxim-m1": _maxim("m1", 1, 19_361_219, 308.495712256, COMMENTS),
    "maxim-m2": _maxim("m2", 1, 40_839_110, 675.255418880, COMMENTS),
    "maxim-m3": _maxim("m3", 1, 62_317_001, 1_042.014666752, COMMENTS),
    "maxim-2s": _maxim("s2", 3, 14_176_178, 216, README),
    "maxim-3s": _maxim("s3", 3, 22_212_795, 339, README),
    "drct-x4": _drct("base", 4, 14_139_579, 74.3),
    "drct-x2": _drct("base", 2, 13_991_867, None),
    "drct-l-x4": _drct("l", 4, 27_580_719, 143.9),
    "drct-l-x2": _drct("l", 2, 27_433_007, None),
    "dico-s": _dico("s", 33_137_672, 4.25),
    "dico-b": _dico("b", 129_992_712, 16.88),
    "dico-l": _dico("l", 463_897_992, 60.24),
    "dico-xl": _dico("xl", 701_151_368, 87.30),
    "dico-h": _dico("h", 1_037_408_328, 194.0),
}
