"""Rows of the catalogue's image classifiers: InceptionNeXt, GhostNetV2, SimpleNet and on.

MACs are given in millions, as the public code counts them (four figures).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from paredown.zoo._variant import Variant

TIMM = "timm 1.0.31 (counted)"


def _row(
    build: str,
    paper: str,
    settings: Mapping[str, Any],
    params: int | None,
    millions: float | None,
    source: str,
    **rest: Any,
) -> Variant:
    return Variant(
        build,
        paper,
        settings,
        paper_params=params,
        paper_macs=None if millions is None else round(millions * 1e6),
        source=source,
        **rest,
    )


def _inceptionnext(variant: str, params: int, millions: float, printed: str) -> Variant:
    return _row(
        "inceptionnext:inceptionnext",
        "inceptionnext",
        {"variant": variant},
        params,
        millions,
        f"{TIMM}; the authors print {printed}",
        reference=f"timm:inception_next_{variant}",
    )


def _ghost(width: float, params: int, millions: float, printed: str) -> Variant:
    return _row(
        "ghostnetv2:GhostNetV2",
        "ghostnetv2",
        {"width": width},
        params,
        millions,
        f"{TIMM}; the paper prints {printed}",
        reference=f"timm:ghostnetv2_{round(100 * width)}",
    )


def _simple(
    variant: str, params: int, millions: float, *, side: int = 224, why: str = ""
) -> Variant:
    return _row(
        "simplenet:simplenet",
        "simplenet",
        {"variant": variant},
        params,
        millions,
        "the authors' SimpleNet_Pytorch (counted)",
        image_size=side,
        why=why,
        sizes=(32, 48, 64),
    )


def _nasnet(
    variant: str, side: int, params: int | None, millions: float | None, source: str, why: str = ""
) -> Variant:
    return _row(
        "nasnet:nasnet",
        "nasnet",
        {"variant": variant},
        params,
        millions,
        source,
        image_size=side,
        why=why,
        sizes=(32, 49, 64),
    )


def _inception(kind: str, params: int | None, millions: float | None, source: str) -> Variant:
    return _row(
        "inception_v4:Inception",
        "inception-v4",
        {"kind": kind},
        params,
        millions,
        source,
        image_size=299,
        sizes=(75, 96, 107),
    )


def _convit(variant: str, params: int, millions: float | None, why: str = "") -> Variant:
    return _row(
        "convit:convit",
        "convit",
        {"variant": variant},
        params,
        millions,
        "the paper's table 1" if why else f"{TIMM}; the paper's table 1 cuts to whole millions",
        why=why,
        fixed_size=True,
        sizes=(32, 48, 64),
        reference=""
        if "+" in variant
        else f"timm:convit_{dict(ti='tiny', s='small', b='base')[variant]}",
    )


def _lsnet(variant: str, params: int, millions: float, printed: str) -> Variant:
    return _row(
        "lsnet:lsnet",
        "lsnet",
        {"variant": variant},
        params,
        millions,
        f"the authors' LSNet (counted with the dynamic kernels); they print {printed}",
        fixed_size=True,
        sizes=(64, 96, 128),
    )


def _ffnet(variant: str, folded: bool, params: int, millions: float | None, side: int) -> Variant:
    return _row(
        "ffnet:ffnet",
        "metamixer-ffnet",
        {"variant": variant, "folded": folded},
        params,
        millions,
        "the authors' FFNet (counted)",
        image_size=side,
        sizes=(32, 48, 64),
    )


def _moat(variant: str, side: int, params: int, millions: float, why: str = "") -> Variant:
    return _row(
        "moat:moat",
        "moat",
        {"variant": variant},
        params,
        millions,
        "the paper's table 2" if why else "the authors' deeplab2 (rebuilt and counted)",
        image_size=side,
        why=why,
        fixed_size=True,
        sizes=(32, 64, 96),
    )


def _overlock(variant: str, merged: bool, params: int, millions: float | None) -> Variant:
    return _row(
        "overlock:overlock",
        "overlock",
        {"variant": variant, "merged": merged},
        params,
        millions,
        "the authors' OverLoCK (counted with the dynamic kernels)"
        + ("" if merged else ", with the auxiliary head"),
        sizes=(64, 96, 128),
    )


UNMATCHED = (
    "the paper prints {} parameters{}; the rules that count A(4@1056) and A(6@4032) to the digit "
    "give more here, with any stem of 32 to 96 filters; the authors released no code for it"
)

ELEMENTWISE = (
    "the table counts elementwise work (norms, activations, softmax) too: we count {} billion MACs "
    "and {} billion of these"
)
CUT = (
    "the paper's table cuts to whole millions (it prints 27M for the 27.8M of ConViT-S); there is "
    "no public code of the larger variants"
)

ROWS: dict[str, Variant] = {
    "inceptionnext-atto": _inceptionnext("atto", 4_156_520, 503.0, "4.2M, 0.51G"),
    "inceptionnext-tiny": _inceptionnext("tiny", 28_055_680, 4_189, "28M, 4.2G"),
    "inceptionnext-small": _inceptionnext("small", 49_374_016, 8_356, "49M, 8.4G"),
    "inceptionnext-base": _inceptionnext("base", 86_672_136, 14_841, "87M, 14.9G; 43.6G at 384"),
    "ghostnetv2-1.0": _ghost(1.0, 6_156_908, 167.0, "6.1M, 167M"),
    "ghostnetv2-1.3": _ghost(1.3, 8_960_404, 269.3, "8.9M, 269M"),
    "ghostnetv2-1.6": _ghost(1.6, 12_392_698, 398.6, "12.3M, 399M"),
    "simplenet-cifar-5m": _simple("cifar-5m", 5_498_378, 652.2, side=32),
    "simplenet-cifar-310k": _simple("cifar-310k", 312_362, 55.79, side=32),
    "simplenet-cifar-460k": _simple("cifar-460k", 385_790, 73.2, side=32),
    "simplenet-small-0.5-m1": _simple("small-0.5-m1", 1_506_792, 340.9),
    "simplenet-small-0.5-m2": _simple("small-0.5-m2", 1_506_792, 427.6),
    "simplenet-small-0.75-m1": _simple("small-0.75-m1", 3_287_272, 758.9),
    "simplenet-small-0.75-m2": _simple("small-0.75-m2", 3_287_272, 953.9),
    "simplenet-5m-m1": _simple("5m-m1", 5_752_808, 1_342),
    "simplenet-5m-m2": _simple("5m-m2", 5_752_808, 1_689),
    "simplenet-9m-m1": _simple("9m-m1", 9_508_968, 2_774),
    "simplenet-9m-m2": _simple("9m-m2", 9_508_968, 3_555),
    "inception-v4": _inception("v4", 42_679_816, 12_254, TIMM),
    "inception-resnet-v1": _inception(
        "resnet-v1",
        None,
        None,
        "no published count; the paper says 'about the cost of Inception-v3'",
    ),
    "inception-resnet-v2": _inception("resnet-v2", 55_843_464, 13_156, TIMM),
    "nasnet-a-mobile": _nasnet(
        "mobile", 224, 5_289_978, 564, f"{TIMM}; the paper prints 5.3M, 564M for A(4@1056)"
    ),
    "nasnet-a-7@1920": _nasnet(
        "a-7@1920",
        299,
        22_600_000,
        4_930,
        "the paper",
        UNMATCHED.format("22.6M", " and 4.93 billion MACs"),
    ),
    "nasnet-a-large": _nasnet(
        "large", 331, 88_753_150, 23_783, f"{TIMM}; the paper prints 88.9M, 23.8B for A(6@4032)"
    ),
    "nasnet-a-cifar-6@768": _nasnet("cifar-6@768", 32, 3_328_234, 525.8, "rebuilt (3.3M printed)"),
    "nasnet-a-cifar-7@2304": _nasnet(
        "cifar-7@2304", 32, 27_600_000, None, "the paper", UNMATCHED.format("27.6M", "")
    ),
    "convit-ti": _convit("ti", 5_710_512, 1_252),
    "convit-s": _convit("s", 27_777_322, 5_747),
    "convit-b": _convit("b", 86_540_040, 17_506),
    "convit-ti+": _convit("ti+", 10_000_000, None),
    "convit-s+": _convit("s+", 48_000_000, None, CUT),
    "convit-b+": _convit("b+", 152_000_000, None, CUT),
    "moat-tiny-0": _moat("tiny-0", 256, 3_362_740, 1_041),
    "moat-tiny-1": _moat("tiny-1", 256, 5_132_135, 1_576),
    "moat-tiny-2": _moat("tiny-2", 256, 9_785_677, 2_975),
    "moat-tiny-3": _moat("tiny-3", 256, 19_552_870, 5_897),
    "moat-0": _moat("0", 224, 27_846_892, 5_638),
    "moat-1": _moat("1", 224, 41_598_448, 9_001),
    "moat-2": _moat("2", 224, 73_422_408, 17_050),
    "moat-3": _moat("3", 512, 190_000_000, 271_000, ELEMENTWISE.format("263.4", "6.6")),
    "moat-4": _moat("4", 512, 483_200_000, 648_500, ELEMENTWISE.format("636.3", "10.5")),
    "overlock-xt-merged": _overlock("xt", True, 16_453_712, 2_700),
    "overlock-t-merged": _overlock("t", True, 33_467_040, 5_650),
    "overlock-s-merged": _overlock("s", True, 56_156_452, 9_890),
    "overlock-b-merged": _overlock("b", True, 94_942_528, 17_100),
    "overlock-xt": _overlock("xt", False, 17_307_272, None),
    "overlock-t": _overlock("t", False, 34_990_472, None),
    "overlock-s": _overlock("s", False, 58_309_772, None),
    "overlock-b": _overlock("b", False, 98_012_968, None),
    "lsnet-t": _lsnet("t", 11_409_832, 316, "11.4M, 0.3G"),
    "lsnet-s": _lsnet("s", 16_146_304, 538, "16.1M, 0.5G"),
    "lsnet-b": _lsnet("b", 23_313_608, 1_245, "23.2M, 1.3G"),
    "ffnet-1": _ffnet("1", False, 13_775_656, None, 256),
    "ffnet-2": _ffnet("2", False, 27_208_408, None, 256),
    "ffnet-3": _ffnet("3", False, 48_817_896, None, 256),
    "ffnet-4": _ffnet("4", False, 79_868_968, None, 384),
    "ffnet-1-folded": _ffnet("1", True, 13_660_152, 2_985, 256),
    "ffnet-2-folded": _ffnet("2", True, 26_908_440, 6_003, 256),
    "ffnet-3-folded": _ffnet("3", True, 48_330_632, 10_146, 256),
    "ffnet-4-folded": _ffnet("4", True, 79_200_360, 43_122, 384),
    **{
        f"unireplknet-{variant}{'-merged' if merged else ''}": _row(
            "unireplknet:unireplknet",
            "unireplknet",
            {"variant": variant, "merged": merged},
            params,
            millions,
            "the authors' UniRepLKNet (counted)",
            image_size=side,
            sizes=(32, 48, 64),
        )
        for variant, merged, side, params, millions in (
            ("a", True, 224, 4_437_300, 639.8),
            ("f", True, 224, 6_235_216, 905.1),
            ("p", True, 224, 10_741_704, 1_573),
            ("n", True, 224, 18_318_560, 2_767),
            ("t", True, 224, 31_037_980, 4_899),
            ("s", True, 224, 55_645_984, 9_094),
            ("b", True, 224, 98_008_456, 16_057),
            ("l", True, 384, 218_454_616, 105_422),
            ("xl", True, 384, 386_529_064, 186_772),
            ("a", False, 224, 4_649_060, 674.7),
            ("f", False, 224, 6_489_328, None),
            ("p", False, 224, 11_080_520, None),
            ("n", False, 224, 18_818_880, None),
            ("t", False, 224, 31_693_420, None),
            ("s", False, 224, 56_456_704, None),
        )
    },
}
