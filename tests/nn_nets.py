"""Modules as after training, for the tests of blocks and networks."""

import torch
from torch import nn


def with_statistics(model, seed=1):
    """In evaluation mode, with batch norms that are not the identity."""
    generator = torch.Generator().manual_seed(seed)
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            m.weight.data.uniform_(0.5, 1.5, generator=generator)
            m.bias.data.normal_(0, 0.2, generator=generator)
            m.running_mean.normal_(0, 0.2, generator=generator)
            m.running_var.uniform_(0.5, 2, generator=generator)
    return model.eval()
