"""Rows of the baselines: the networks that the catalogue's claims are made against."""

from __future__ import annotations

from typing import Any

from paredown.zoo._variant import Variant

TIMM = "timm 1.0.31 (counted)"


def _counted(
    build: str, paper: str, settings: dict[str, Any], params: int, macs: int, name: str, **more: Any
) -> Variant:
    """A row whose published figures are the counts of timm's network of this name."""
    return Variant(
        build,
        paper,
        settings,
        paper_params=params,
        paper_macs=macs,
        source=TIMM,
        reference=f"timm:{name}",
        **more,
    )


def _resnet(layers: int, params: int, macs: int) -> Variant:
    settings = {"layers": layers}
    return _counted("resnet:resnet", "arXiv:1512.03385", settings, params, macs, f"resnet{layers}")


def _resnext(variant: str, params: int, macs: int) -> Variant:
    name = "resnext" + variant.replace("-", "_")
    settings = {"variant": variant}
    return _counted("resnext:resnext", "arXiv:1611.05431", settings, params, macs, name)


def _densenet(layers: int, params: int, macs: int) -> Variant:
    settings, name = {"layers": layers}, f"densenet{layers}"
    return _counted("densenet:densenet", "arXiv:1608.06993", settings, params, macs, name)


def _mobilenetv3(variant: str, params: int, macs: int) -> Variant:
    settings, name = {"variant": variant}, f"mobilenetv3_{variant}_100"
    return _counted("mobilenetv3:MobileNetV3", "arXiv:1905.02244", settings, params, macs, name)


def _efficientnet(variant: str, image_size: int, params: int, macs: int) -> Variant:
    settings, name = {"variant": variant}, f"efficientnet_{variant}"
    return _counted(
        "efficientnet:efficientnet",
        "arXiv:1905.11946",
        settings,
        params,
        macs,
        name,
        image_size=image_size,
    )


def _convnext(variant: str, params: int, macs: int) -> Variant:
    settings, name = {"variant": variant}, f"convnext_{variant}"
    return _counted("convnext:convnext", "arXiv:2201.03545", settings, params, macs, name)


def _vit(paper: str, variant: str, params: int, macs: int, name: str, **settings: Any) -> Variant:
    settings = {"variant": variant, **settings}
    return _counted(
        "vit:vit", paper, settings, params, macs, name, fixed_size=True, sizes=(32, 48, 64)
    )


def _swin(variant: str, params: int, macs: int) -> Variant:
    settings, name = {"variant": variant}, f"swin_{variant}_patch4_window7_224"
    return _counted("swin:swin", "arXiv:2103.14030", settings, params, macs, name)


def _fasternet(variant: str, params: int, macs: int) -> Variant:
    settings, name = {"variant": variant}, f"fasternet_{variant}"
    return _counted("fasternet:fasternet", "arXiv:2303.03667", settings, params, macs, name)


def _mixer(variant: str, params: int, macs: int) -> Variant:
    settings, name, sizes = {"variant": variant}, f"mixer_{variant}16_224", (32, 48, 64)
    return _counted(
        "mlp_mixer:mixer",
        "arXiv:2105.01601",
        settings,
        params,
        macs,
        name,
        fixed_size=True,
        sizes=sizes,
    )


def _dit(variant: str, patch: int, params: int, macs: int, why: str = "") -> Variant:
    return Variant(
        "dit:dit",
        "arXiv:2212.09748",
        {"variant": variant, "patch": patch},
        image_size=32,
        in_channels=4,
        paper_params=params,
        paper_macs=macs,
        why=why,
        source="the paper, tables 1 and 4 (its Gflops are multiply-adds, of 256 x 256 images)",
        fixed_size=True,
        sizes=(8, 16, 24),
        example="dit:example",
    )


DEIT, VIT = "arXiv:2012.12877", "arXiv:2010.11929"

ROWS: dict[str, Variant] = {
    "resnet18": _resnet(18, 11_689_512, 1_814_073_344),
    "resnet34": _resnet(34, 21_797_672, 3_663_761_408),
    "resnet50": _resnet(50, 25_557_032, 4_089_184_256),
    "resnet101": _resnet(101, 44_549_160, 7_801_405_440),
    "resnet152": _resnet(152, 60_192_808, 11_513_626_624),
    "resnext50-32x4d": _resnext("50-32x4d", 25_028_904, 4_230_479_872),
    "resnext101-32x8d": _resnext("101-32x8d", 88_791_336, 16_414_015_488),
    "densenet121": _densenet(121, 7_978_856, 2_834_161_664),
    "densenet169": _densenet(169, 14_149_480, 3_359_843_328),
    "densenet201": _densenet(201, 20_013_928, 4_291_365_888),
    "densenet161": _densenet(161, 28_681_000, 7_727_907_072),
    "mobilenetv1": _counted(
        "mobilenetv1:MobileNetV1",
        "arXiv:1704.04861",
        {},
        4_231_976,
        568_740_352,
        "mobilenetv1_100",
    ),
    "mobilenetv3-large": _mobilenetv3("large", 5_483_032, 216_589_760),
    "mobilenetv3-small": _mobilenetv3("small", 2_542_856, 56_510_400),
    "efficientnet-b0": _efficientnet("b0", 224, 5_288_548, 385_814_752),
    "convnext-tiny": _convnext("tiny", 28_589_128, 4_455_531_264),
    "convnext-small": _convnext("small", 50_223_688, 8_683_712_256),
    "convnext-base": _convnext("base", 88_591_464, 15_354_729_472),
    "convnext-large": _convnext("large", 197_767_336, 34_361_433_600),
    "vit-ti": _vit(DEIT, "ti", 5_717_416, 1_253_683_200, "deit_tiny_patch16_224"),
    "vit-s": _vit(DEIT, "s", 22_050_664, 4_598_882_304, "deit_small_patch16_224"),
    "vit-b": _vit(VIT, "b", 86_567_656, 17_563_828_224, "vit_base_patch16_224"),
    "vit-l": _vit(VIT, "l", 304_326_632, 61_554_712_576, "vit_large_patch16_224"),
    "deit-ti-distilled": _vit(
        DEIT,
        "ti",
        5_910_800,
        1_261_003_776,
        "deit_tiny_distilled_patch16_224",
        distilled=True,
    ),
    "deit-s-distilled": _vit(
        DEIT,
        "s",
        22_436_432,
        4_624_140_288,
        "deit_small_distilled_patch16_224",
        distilled=True,
    ),
    "deit-b-distilled": _vit(
        DEIT,
        "b",
        87_338_192,
        17_656_811_520,
        "deit_base_distilled_patch16_224",
        distilled=True,
    ),
    "swin-tiny": _swin("tiny", 28_288_354, 4_490_566_656),
    "swin-small": _swin("small", 49_606_258, 8_740_875_264),
    "swin-base": _swin("base", 87_768_224, 15_430_946_816),
    "fasternet-t0": _fasternet("t0", 3_905_500, 335_422_720),
    "fasternet-t1": _fasternet("t1", 7_595_368, 850_511_872),
    "fasternet-t2": _fasternet("t2", 14_982_888, 1_904_334_848),
    "fasternet-s": _fasternet("s", 31_181_032, 4_549_740_544),
    "fasternet-m": _fasternet("m", 53_521_464, 8_721_938_432),
    "fasternet-l": _fasternet("l", 93_465_192, 15_494_383_616),
    "mixer-s16": _mixer("s", 18_528_264, 3_776_958_464),
    "mixer-b16": _mixer("b", 59_880_472, 12_601_767_936),
    "mixer-l16": _mixer("l", 208_196_168, 44_547_678_208),
    "regnetx-200mf": _counted(
        "regnet:regnetx",
        "arXiv:2003.13678",
        {"variant": "200mf"},
        2_684_792,
        199_039_872,
        "regnetx_002",
    ),
    "regnetx-400mf": _counted(
        "regnet:regnetx",
        "arXiv:2003.13678",
        {"variant": "400mf"},
        5_157_512,
        397_677_568,
        "regnetx_004",
    ),
    "unet": Variant(
        "unet:UNet",
        "arXiv:1505.04597",
        image_size=572,
        in_channels=1,
        source="the paper prints no counts; the sizes of its figure 1, 572 in and 388 out, are met",
        sizes=(188, 204, 220),
    ),
    "dit-s2": _dit("s", 2, 33_000_000, 6_060_000_000),
    "dit-b2": _dit("b", 2, 130_000_000, 23_010_000_000),
    "dit-l2": _dit("l", 2, 458_000_000, 80_710_000_000),
    "dit-xl2": _dit("xl", 2, 675_000_000, 118_640_000_000),
    "dit-s4": _dit("s", 4, 33_000_000, 1_410_000_000),
    "dit-s8": _dit("s", 8, 33_000_000, 360_000_000, "0.36 Gflops is printed, two digits"),
}
