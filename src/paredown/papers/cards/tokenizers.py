"""Claim card of ViTok, a transformer that tokenizes images (arXiv:2501.09755)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from paredown import zoo
from paredown.papers.cards._nets import images
from paredown.papers.cards._parts import Build, Exact, Timing, Trained, better, learns
from paredown.papers.cards._pictures import Plan, restored
from paredown.papers.cards._subjects import zoo_pair
from paredown.papers.cards.architectures import ArchitectureCard
from paredown.zoo.vitok import ViTok, code_floats, counted_macs, loss

CHANNELS, HEADS, PATCH = 48, 4, 8
# Latent channels, blocks of the encoder and of the decoder; 16 tokens of a 32 x 32 picture.
FAMILY: dict[str, tuple[int, int, int]] = {
    "E = 32": (2, 1, 2),
    "E = 128": (8, 1, 2),
    "E = 512": (32, 1, 2),
    "E = 128, deep encoder": (8, 2, 1),
}


def small_vitok(name: str) -> nn.Module:
    """One of a family by the floats of its code and where its three blocks stand."""
    latent, encoder, decoder = FAMILY[name]
    sizes = [(CHANNELS, depth, HEADS) for depth in (encoder, decoder)]
    return ViTok(sizes[0], sizes[1], latent, 1, patch=PATCH)


def unharmed(clean: Tensor, generator: torch.Generator) -> Tensor:
    """The picture itself: an auto-encoder is to return it."""
    return clean


def reconstructed(build: Build, name: str, seed: int, plan: Plan) -> dict[str, float]:
    """PSNR of pictures from their code's mean; trained by squared error and KL alone."""
    return restored(build, name, seed, plan, unharmed, loss)[1]


def same_code() -> float:
    """Floats of the code with half the patch and a quarter of the channels, off those before."""
    return abs(code_floats(256, patch=8, latent=4) / code_floats(256, patch=16, latent=16) - 1)


def closed_form() -> float:
    """MACs of S-B/16 by formula, off the graph's."""
    return abs(counted_macs("s-b", 256) / zoo.row("vitok-s-b-16").macs - 1)


def work_share() -> float:
    """MACs of Stable Diffusion's convolutional auto-encoder over those of S-B/16, 256 pixels."""
    return zoo.row("sd-vae").macs / zoo.row("vitok-s-b-16").macs


VAE_PAIR = (("SD-VAE", "sd-vae"), ("ViTok S-B/16", "vitok-s-b-16"))


class ViTokCard(ArchitectureCard):
    """Counts, the code's size and work; what more floats and a deeper decoder give.

    Squared error and KL only: the perceptual and adversarial losses need trained networks.
    """

    key = "vitok"
    claim = (
        "a transformer auto-encoder reconstructs with 2 to 5 times less work than convolutional "
        "ones; the floats of its code govern quality, and a larger decoder helps, an encoder not"
    )
    rows = ("vitok-s-b-16", "vitok-s-l-16")
    exact = (
        Exact("half the patch, a quarter of the channels: floats off", same_code, 0.0),
        Exact("MACs by formula, off the graph's", closed_form),
        Exact("MACs, SD-VAE over S-B/16", work_share, 2.0, ">="),
    )
    timings = (Timing(zoo_pair, (*VAE_PAIR, 128), "ViTok S-B/16", "SD-VAE", 0.5),)
    trained = Trained(
        reconstructed,
        small_vitok,
        images(1, 1, 32, 32),
        {"quick": Plan(330, batch=16), "full": Plan(4000, batch=16)},
        seeds={"quick": 3, "full": 10},
        floors={"PSNR": 0.01},
    )
    learnt = (
        learns("E = 512", 18.0, "PSNR", "dB"),
        better("E = 128", "E = 32", 0.0, "PSNR", "dB"),
        better("E = 512", "E = 128", 0.0, "PSNR", "dB"),
        better("E = 128", "E = 128, deep encoder", 0.0, "PSNR", "dB"),
    )
