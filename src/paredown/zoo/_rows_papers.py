"""Rows of the catalogue's own networks: every named variant of each paper."""

from __future__ import annotations

from paredown.zoo._variant import Variant

TIMM = "timm 1.0.31 (counted)"
VOVNET = "the authors' VoVNet.pytorch (counted)"
PFLAYER = "the authors' PfLayer (counted)"

ROWS: dict[str, Variant] = {
    "mobilenetv2": Variant(
        "mobilenetv2:MobileNetV2",
        "mobilenetv2",
        paper_params=3_504_872,
        paper_macs=300_774_272,
        source=f"{TIMM}; the paper prints 3.4M and 300M",
        reference="timm:mobilenetv2_100",
    ),
    "mobilenetv2-1.4": Variant(
        "mobilenetv2:MobileNetV2",
        "mobilenetv2",
        {"width": 1.4},
        paper_params=6_108_776,
        paper_macs=582_195_824,
        source=f"{TIMM}; the paper prints 6.9M and 585M",
        reference="timm:mobilenetv2_140",
    ),
    "mobilenetv2-0.35": Variant(
        "mobilenetv2:MobileNetV2",
        "mobilenetv2",
        {"width": 0.35},
        paper_params=1_677_128,
        paper_macs=59_285_808,
        source=TIMM,
        reference="timm:mobilenetv2_035",
    ),
    "vovnet27-slim": Variant(
        "vovnet:vovnet",
        "vovnet",
        {"variant": "27-slim"},
        paper_params=3_525_736,
        paper_macs=2_176_695_296,
        source=VOVNET,
    ),
    "vovnet39": Variant(
        "vovnet:vovnet",
        "vovnet",
        {"variant": "39"},
        paper_params=22_600_296,
        paper_macs=7_072_227_328,
        source=f"{VOVNET}; timm vovnet39a",
        reference="timm:vovnet39a",
    ),
    "vovnet57": Variant(
        "vovnet:vovnet",
        "vovnet",
        {"variant": "57"},
        paper_params=36_640_296,
        paper_macs=8_930_144_256,
        source=f"{VOVNET}; timm vovnet57a",
        reference="timm:vovnet57a",
    ),
    "resnet50-max": Variant(
        "pflayer:pooled_resnet",
        "pflayer",
        {"spatial": "max"},
        paper_params=14_232_232,
        paper_macs=2_239_496_192,
        source=f"{PFLAYER}; the paper prints 14.2M and 2.2G",
    ),
    "resnet50-hybrid": Variant(
        "pflayer:pooled_resnet",
        "pflayer",
        {"spatial": "hybrid"},
        paper_params=17_330_600,
        paper_macs=2_586_312_704,
        source=f"{PFLAYER}; the paper prints 17.3M and 2.6G",
    ),
    "vit-ti-max": Variant(
        "pflayer:pooled_vit",
        "pflayer",
        {"variant": "ti"},
        fixed_size=True,
        sizes=(32, 48, 64),
        paper_params=6_159_400,
        paper_macs=1_244_757_504,
        source=PFLAYER,
    ),
    "vit-s-max": Variant(
        "pflayer:pooled_vit",
        "pflayer",
        {"variant": "s"},
        fixed_size=True,
        sizes=(32, 48, 64),
        paper_params=23_819_368,
        paper_macs=4_743_822_336,
        source=PFLAYER,
    ),
    "vit-b-max": Variant(
        "pflayer:pooled_vit",
        "pflayer",
        {"variant": "b"},
        fixed_size=True,
        sizes=(32, 48, 64),
        paper_params=93_644_008,
        paper_macs=18_504_873_984,
        source=PFLAYER,
    ),
    "convfirst": Variant(
        "convfirst:ConvFirstNet",
        "convfirst",
        image_size=256,
        source="no layout of ConvFirstNet could be read; blocks of andravin/spio, stages are ours",
        sizes=(45, 56, 64),
    ),
}
