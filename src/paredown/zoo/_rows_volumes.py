"""Rows of the networks for clips and volumes: pseudo-3-D, reversible and hybrid ones."""

from __future__ import annotations

from paredown.zoo._variant import Variant


def _p3d(layers: int, params: int, macs: int, extra: str = "") -> Variant:
    return Variant(
        "p3d_resnet:p3d_resnet",
        "p3d-resnet",
        {"layers": layers},
        image_size=160,
        frames=16,
        paper_params=params,
        paper_macs=macs,
        source=f"qijiezhao/pseudo-3d-pytorch (counted){extra}",
        sizes=(33, 40, 64),
    )


ROWS: dict[str, Variant] = {
    "rev-mbconv-unet3d": Variant(
        "rev_mbconv_unet3d:RevMBConvUNet3d",
        "rev-mbconv-unet3d",
        image_size=240,
        frames=155,
        in_channels=4,
        source="no public code or table; levels, width and expansion are ours",
        sizes=(13, 16, 24),
    ),
    "p3d63": _p3d(63, 25_745_232, 8_440_000_000),
    "p3d131": _p3d(131, 48_088_400, 12_900_000_000),
    "p3d199": _p3d(199, 66_492_240, 18_400_000_000, "; the paper prints 261 MB, these are 266"),
}
