"""Predicted and measured latency move the same way where a technique changes them a lot."""

import pytest
import torch

from paredown import device, registry, zoo
from paredown.testing.timing import cost_moves_as_measured
from paredown.workload import Workload


def wide():
    torch.manual_seed(0)
    net = zoo.create("resnet18", num_classes=10).eval()
    return Workload(net, (torch.randn(4, 3, 96, 96),), name="resnet18")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("structured-pruning", {"share": 0.625, "streams": True}),
        ("low-rank", {"share": 0.25}),
        ("static-int8", {}),
    ],
)
def test_prediction_points_where_measurement_goes(name, settings):
    """Pruned and factored run faster, and so does int8 on torch's integer operators."""
    torch.set_num_threads(1)
    technique = registry.make(name, settings)
    predicted, measured = cost_moves_as_measured(technique, wide, device.load("xeon-8480"))
    assert max(predicted, measured) < 1
