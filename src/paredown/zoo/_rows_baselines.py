"""Rows of the baselines: the networks that the catalogue's claims are made against."""

from __future__ import annotations

from paredown.zoo._variant import Variant

TIMM = "timm 1.0.31 (counted)"
VIT_SIZES = (32, 48, 64)


def _vit(variant: str, params: int, macs: int, name: str) -> Variant:
    return Variant(
        "vit:vit",
        "arXiv:2012.12877",
        {"variant": variant},
        paper_params=params,
        paper_macs=macs,
        source=TIMM,
        fixed_size=True,
        sizes=VIT_SIZES,
        reference=f"timm:{name}",
    )


def _resnet(layers: int, params: int, macs: int) -> Variant:
    return Variant(
        "resnet:resnet",
        "arXiv:1512.03385",
        {"layers": layers},
        paper_params=params,
        paper_macs=macs,
        source=TIMM,
        reference=f"timm:resnet{layers}",
    )


ROWS: dict[str, Variant] = {
    "resnet18": _resnet(18, 11_689_512, 1_814_073_344),
    "resnet34": _resnet(34, 21_797_672, 3_663_761_408),
    "resnet50": _resnet(50, 25_557_032, 4_089_184_256),
    "densenet121": Variant(
        "densenet:DenseNet",
        "arXiv:1608.06993",
        paper_params=7_978_856,
        paper_macs=2_834_161_664,
        source=TIMM,
        reference="timm:densenet121",
    ),
    "convnext-tiny": Variant(
        "convnext:ConvNeXt",
        "arXiv:2201.03545",
        paper_params=28_589_128,
        paper_macs=4_455_531_264,
        source=TIMM,
        reference="timm:convnext_tiny",
    ),
    "vit-ti": _vit("ti", 5_717_416, 1_253_683_200, "deit_tiny_patch16_224"),
    "vit-s": _vit("s", 22_050_664, 4_598_882_304, "deit_small_patch16_224"),
    "vit-b": _vit("b", 86_567_656, 17_563_828_224, "deit_base_patch16_224"),
    "regnetx-400mf": Variant(
        "regnet:regnetx",
        "arXiv:2003.13678",
        {"variant": "400mf"},
        paper_params=5_157_512,
        source=TIMM,
        reference="timm:regnetx_004",
    ),
}
