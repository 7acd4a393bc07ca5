"""What the fuzzer found, each shrunk to a few lines and named after what was wrong."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from paredown import registry
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.graph.liveness import liveness
from paredown.testing.fuzz.oracles import check
from paredown.workload import TrainingData, Workload


class Of(nn.Module):
    """A function as a module."""

    def __init__(self, function, **layers: nn.Module) -> None:
        super().__init__()
        self.function, self.layers = function, nn.ModuleDict(layers)

    def forward(self, *x: Tensor):
        return self.function(self.layers, *x)


def workload(function, *inputs: Tensor, **layers: nn.Module) -> Workload:
    torch.manual_seed(0)
    return Workload(Of(function, **layers).eval(), inputs)


@pytest.mark.parametrize("groups", [1, 8])
def test_a_channel_shuffle_of_one_group_was_taken_for_a_view(groups):
    """torch's meta kernel hands its input back where the CPU's copies: 0 bytes were predicted."""
    found = workload(lambda _, x: F.channel_shuffle(x, groups), torch.randn(1, 8, 5, 5))
    assert liveness(capture(found)).high_water == 8 * 5 * 5 * 4
    assert check(found)[1] == []


def test_index_tensors_of_three_lists_were_taken_for_one():
    """Each died before the next was made, which came to lie in its place, and none was held."""
    found = workload(lambda _, x: x[[0, 0, 3], [1, 1, 3], [0, 0, 2]], torch.randn(5, 5, 5))
    graph = capture(found)
    index = next(n for n in graph.nodes if n.op == "aten::index")
    assert len({graph.tensors[t].storage for t in index.inputs}) == 4
    assert liveness(graph).high_water == 3 * 24 + 12
    assert check(found)[1] == []


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: torch.div(a, b, rounding_mode="floor"),
        lambda a, b: torch.div(a, b, rounding_mode="trunc"),
        torch.div,
        torch.floor_divide,
        torch.copysign,
        torch.isin,
        lambda a, b: F.logsigmoid(a) + b,
    ],
)
def test_some_meta_kernels_laid_their_result_out_otherwise_than_the_cpu(function):
    """A quotient rounded down lay in rows: the copy that a norm made of it went unseen."""
    x, other = torch.rand(1, 8, 4), torch.rand(2, 1, 8)
    laid = workload(lambda _, a, b: function(a.transpose(1, 2), b), x, other)
    (out,) = capture(laid).outputs
    assert capture(laid).tensors[out].strides == laid.once().stride()
    found = workload(
        lambda _, a, b: F.rms_norm(1.0 * function(a.transpose(1, 2), b)[-1], [8]), x, other
    )
    assert check(found)[1] == []


def test_one_shot_pruning_met_an_image_without_a_batch():
    """The covariance of its patches was taken along a dimension that it does not have."""
    found = workload(
        lambda m, x: m["conv"](x), torch.randn(4, 9, 9), conv=nn.Conv2d(4, 8, 3, padding=1)
    )
    found.calibration = [torch.randn(4, 9, 9) for _ in range(3)]
    technique = registry.make("one-shot-pruning")
    sites = technique.sites(found, capture(found))
    assert sites.ok
    change = technique.apply(found, sites)
    weight = change.workload.model.get_submodule("layers.conv").weight
    assert float((weight == 0).float().mean()) > 0.3


def test_recovery_wrote_a_score_that_is_not_a_number():
    """It trained from NaN and failed when its decisions were saved."""
    found = workload(lambda m, x: m["linear"](x).log(), torch.randn(4, 6), linear=nn.Linear(6, 3))
    batches = [((torch.randn(4, 6),), torch.zeros(4, 3))]
    found.training = TrainingData(lambda: batches, lambda out, target: (out - target).mean())
    found.original = found.model
    technique = registry.make("recover", {"steps": 2})
    with pytest.raises(InputError, match="not finite"):
        technique.apply(found, technique.sites(found, capture(found)))
