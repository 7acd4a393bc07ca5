"""Rows of the networks for clips and volumes: pseudo-3-D, reversible and hybrid ones."""

from __future__ import annotations

from paredown.zoo._variant import Variant

HDENSE = "xmengli/H-DenseUNet, layers counted"


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
    "denseunet167": Variant(
        "h_denseunet:denseunet167",
        "h-denseunet",
        paper_params=49_527_843,
        source=f"{HDENSE}: 44,862,339 without skips, 4,665,504 in the skip's convolution",
        sizes=(32, 64, 96),
    ),
    "h-denseunet": Variant(
        "h_denseunet:HDenseUNet",
        "h-denseunet",
        frames=8,
        in_channels=1,
        paper_params=44_862_339 + 15_977_272 + 110_979,
        paper_macs=8 * 17_660_000_000 + 117_200_000_000 + 44_500_000_000,
        source=f"{HDENSE}: 2-D net, 3-D net less its unused head, fusion",
        sizes=(32, 64, 96),
    ),
}
