"""A target small enough to be pared in seconds: a conv net that must keep its own answers."""

import torch
from torch import nn

from paredown import Workload

torch.manual_seed(0)


class Net(nn.Module):
    """Four convolutions with batch norms on 32 x 32 images, five classes."""

    def __init__(self):
        super().__init__()
        layers = []
        for cin, cout, stride in [(3, 32, 2), (32, 64, 1), (64, 64, 2), (64, 96, 1)]:
            layers += [
                nn.Conv2d(cin, cout, 3, stride, 1, bias=False),
                nn.BatchNorm2d(cout),
                nn.ReLU(),
            ]
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(96, 5)

    def forward(self, x):
        return self.head(self.features(x).mean((2, 3)))


def network():
    torch.manual_seed(0)
    net = Net()
    # Statistics of real activations, so that folding and ranges have something to get wrong.
    net.train()
    for _ in range(5):
        net(torch.randn(16, 3, 32, 32) + 0.3)
    return net.eval()


class Agrees:
    """Per-example agreement with the answers the original gives."""

    def __init__(self, answers, images):
        self.answers, self.images = answers, images

    def __call__(self, model):
        with torch.inference_mode():
            out = torch.cat([model(x) for x in self.images.split(8)])
        return (out.argmax(-1) == self.answers).float()


def judge(net, seed, n=120):
    images = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(seed)) + 0.3
    with torch.inference_mode():
        return Agrees(net(images).argmax(-1), images)


def target():
    net = network()
    g = torch.Generator().manual_seed(3)
    calibration = [torch.randn(1, 3, 32, 32, generator=g) + 0.3 for _ in range(16)]
    return Workload(
        net,
        (torch.randn(1, 3, 32, 32, generator=torch.Generator().manual_seed(9)),),
        name="tiny",
        calibration=calibration,
        evaluate=judge(net, 1),
        verify=judge(net, 2),
        scale=1.0,
    )
