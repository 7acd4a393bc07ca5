"""Rows of the catalogue's own networks: every named variant of each paper."""

from __future__ import annotations

from paredown.zoo._variant import Variant

TIMM = "timm 1.0.31 (counted)"
VOVNET = "the authors' VoVNet.pytorch (counted)"

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
}
