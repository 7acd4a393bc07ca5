"""Rows of the auto-encoders: ViTok, and the convolutional one it is compared with."""

from __future__ import annotations

from paredown.zoo._variant import Variant

TABLES = "the paper's tables 3 to 5 (its GFLOPs are multiply-adds)"
TUBELET = (
    "the paper prints the count of one frame's patch for tubelets of several: the embedding and "
    "the last layer are that many times larger"
)


def _images(variant: str, side: int, params: float, gigamacs: float) -> Variant:
    return Variant(
        "vitok:vitok",
        "vitok",
        {"variant": variant},
        image_size=side,
        paper_params=round(params * 1e6),
        paper_macs=round(gigamacs * 1e9),
        source=TABLES,
        sizes=(16, 32, 48),
    )


def _clips(tubelet: int, patch: int, gigamacs: float, why: str = "") -> Variant:
    return Variant(
        "vitok:vitok",
        "vitok",
        {"variant": "s-b", "patch": patch, "tubelet": tubelet},
        image_size=128,
        frames=16,
        paper_params=129_000_000,
        paper_macs=round(gigamacs * 1e9),
        source=TABLES,
        why=why,
        sizes=(patch, 2 * patch, 3 * patch),
    )


ROWS: dict[str, Variant] = {
    "vitok-s-b-16": _images("s-b", 256, 129.0, 34.8),
    "vitok-s-b-16-512": _images("s-b", 512, 129.0, 160.8),
    "vitok-s-l-16": _images("s-l", 256, 426.8, 113.4),
    "vitok-s-b-4x8": _clips(4, 8, 160.8),
    "vitok-s-b-8x8": _clips(8, 8, 73.2, TUBELET),
    "vitok-s-b-4x16": _clips(4, 16, 34.8, TUBELET),
    "sd-vae": Variant(
        "sd_vae:SdVae",
        "arXiv:2112.10752",
        image_size=256,
        paper_params=83_653_863,
        source="diffusers' AutoencoderKL of Stable Diffusion (counted); no MACs are published",
        sizes=(16, 24, 40),
    ),
}
