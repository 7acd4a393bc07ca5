"""Rows of the hybrids of convolution and attention: SVT, PATNet."""

from __future__ import annotations

from paredown.zoo._variant import Variant


def _svt(variant: str, params: int, millions: int, wavelets: int, printed: str) -> Variant:
    return Variant(
        "svt:svt",
        "svt",
        {"variant": variant},
        paper_params=params,
        paper_macs=1_000_000 * millions,
        source=(
            "the authors' svt (counted with two scattering stages, attention and blending products "
            f"in, wavelets out); they print {printed} of convolutions and linears alone"
        ),
        why=f"our graph counts the wavelet filters too, {wavelets} million MACs",
        fixed_size=True,
        sizes=(32, 48, 64),
    )


def _patnet(variant: str) -> Variant:
    return Variant(
        "patnet:patnet",
        "patnet",
        {"variant": variant},
        source=(
            "no table of PATNet could be read and its code is not public; blocks and sizes as in "
            "public ports of the authors' PartialNet (arXiv:2502.01303)"
        ),
        sizes=(64, 96, 101),
    )


ROWS: dict[str, Variant] = {
    "svt-h-s": _svt("s", 22_257_392, 4_336, 193, "22.0M, 3.9G"),
    "svt-h-b": _svt("b", 33_083_344, 6_881, 193, "32.8M, 6.3G"),
    "svt-h-l": _svt("l", 54_833_616, 13_985, 347, "54.0M, 12.7G"),
    **{f"patnet-{v}": _patnet(v) for v in ("t0", "t1", "t2", "s", "m", "l")},
}
