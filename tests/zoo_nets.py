"""A network as if trained: norms, scales and biases that are not trivial."""

import torch


def lively(net, seed=0):
    """The network in evaluation mode, its norms' statistics and all scales and biases random."""
    torch.manual_seed(seed)
    for m in net.modules():
        if isinstance(m, (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)):
            m.weight.data.uniform_(0.5, 1.5)
            m.bias.data.normal_(0, 0.3)
            m.running_mean.normal_(0, 0.3)
            m.running_var.uniform_(0.5, 2)
    for name, p in net.named_parameters():
        if name.endswith(("gamma", "beta")):
            p.data.uniform_(-1, 1)
        elif p.ndim == 1 and name.endswith("bias"):
            p.data.normal_(0, 0.1)
    return net.eval()
