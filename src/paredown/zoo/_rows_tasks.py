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


def _leyolo(variant: str, side: int, params: int, printed: float, why: str = "") -> Variant:
    return Variant(
        "leyolo:leyolo",
        "leyolo",
        {"variant": variant},
        image_size=side,
        paper_params=params,
        paper_macs=round(printed * 1e9 / 2),
        source=(
            "the authors' LeYOLO (parameters counted, 16 of them fixed bins); MACs are half the "
            "FLOPs of its table"
        ),
        why=(
            "the table's FLOPs are 5 to 7 % over convolutions alone at every size: its counter "
            f"presumably adds norms and activations{why}"
        ),
        sizes=(64, 96, 128),
    )


UNREAD = "; it also runs the four neck blocks that nothing reads"
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
    "leyolo-n-320": _leyolo("n", 320, 1_120_480, 0.66),
    "leyolo-n-480": _leyolo("n", 480, 1_120_480, 1.47),
    "leyolo-s-480": _leyolo("s", 480, 1_917_440, 2.53),
    "leyolo-s-640": _leyolo("s", 640, 1_917_440, 4.51),
    "leyolo-m-640": _leyolo("m", 640, 2_402_744, 5.8, UNREAD),
    "leyolo-l-768": _leyolo("m", 768, 2_402_744, 8.4, UNREAD),
    "dico-s": _dico("s", 33_137_672, 4.25),
    "dico-b": _dico("b", 129_992_712, 16.88),
    "dico-l": _dico("l", 463_897_992, 60.24),
    "dico-xl": _dico("xl", 701_151_368, 87.30),
    "dico-h": _dico("h", 1_037_408_328, 194.0),
}
