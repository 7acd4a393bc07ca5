"""Small vision transformers for the token techniques, with and without Hugging Face."""

import torch

from paredown.workload import Workload
from paredown.zoo.vit import ViT


def small_vit(batch=2, *, channels=48, depth=3, size=32, patch=4, distilled=False, seed=0):
    """A ViT of 64 patches whose tokens differ: weights far from their tiny initial values."""
    torch.manual_seed(seed)
    model = ViT(
        channels, depth, 4, 10, image_size=size, patch=patch, mlp_ratio=2, distilled=distilled
    ).eval()
    for p in model.parameters():
        p.data += 0.1 * torch.randn_like(p)
    return Workload(model, (torch.randn(batch, 3, size, size),), name="small-vit")
