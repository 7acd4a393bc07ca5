"""Small networks for the capture tests, one per thing that a capture must get right."""

import torch
from torch import nn
from torch.nn import functional as F

from paredown.workload import Workload


def cnn():
    return nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 16, 3, stride=2, groups=2),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(16, 10),
    )


class Attention(nn.Module):
    def __init__(self, width=32, heads=4):
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        b, n, c = x.shape
        qkv = self.qkv(self.norm(x)).view(b, n, 3, self.heads, c // self.heads)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        y = F.scaled_dot_product_attention(q, k, v)
        return x + self.out(y.transpose(1, 2).reshape(b, n, c))


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.head = nn.Linear(8, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        return self.head(self.embed(ids))


class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        if y.sum() > 1e9:  # depends on the data
            y = y + 1
        return y


class Raises(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        y = self.fc(x)
        return y.view(7, 7)  # cannot be


class Masked(nn.Module):
    """Takes a dict, looks at its mask, returns a dict with a nested cache."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, batch, scale=None):
        x, mask = batch["x"], batch["mask"]
        y = self.fc(x)
        if not bool(mask.all()):
            y = y * mask.unsqueeze(-1)
        return {"y": y, "cache": [(y + 1, y + 2)], "scale": scale}


NETWORKS = {
    "cnn": (cnn, lambda: (torch.randn(2, 3, 16, 16),)),
    "attention": (
        lambda: nn.Sequential(Attention(), Attention()),
        lambda: (torch.randn(2, 8, 32),),
    ),
    "encoder": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2, enable_nested_tensor=False
        ),
        lambda: (torch.randn(2, 8, 32),),
    ),
    "lstm": (lambda: nn.LSTM(16, 32, 2, batch_first=True), lambda: (torch.randn(2, 5, 16),)),
    "gru": (lambda: nn.GRU(16, 32, bidirectional=True), lambda: (torch.randn(5, 2, 16),)),
    "tied": (Tied, lambda: (torch.arange(6).reshape(2, 3),)),
}


def workload(name):
    torch.manual_seed(0)
    make, inputs = NETWORKS[name]
    return Workload(make().eval(), inputs(), name=name)
