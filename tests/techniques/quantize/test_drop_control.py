"""Sites left in float by an allowed drop: none too many, the drop kept as judged, refusals."""

import pytest
import torch
from torch import nn

from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.quality import judge
from paredown.runtime.quantized import QuantLinear
from paredown.techniques.quantize.drop_control import within_drop
from paredown.techniques.quantize.static_int8 import StaticInt8
from paredown.workload import Workload


class Nearness:
    """How near each example's output is to what it was, 1 at best."""

    def __init__(self, model, x):
        self.x = x
        with torch.inference_mode():
            self.wanted = model(x)

    def __call__(self, model):
        off = (model(self.x) - self.wanted).square().sum(1) / self.wanted.square().sum(1)
        return 1 - off


@pytest.fixture
def workload():
    """Four linears; the second's inputs are wide in one column, which its weights take back."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, 16) for _ in range(4)]
    model = nn.Sequential(*(m for x in layers for m in (x, nn.Tanh()))).eval()
    with torch.no_grad():
        model[2].weight[:, 0] *= 30
        model[2].weight[:, 1:] *= 1e-2
        model[2].weight *= 0.5
    x = torch.randn(64, 16)
    return Workload(
        model, (x[:1],), calibration=list(x.split(8)), evaluate=Nearness(model, x), scale=1.0
    )


def forms(change):
    return [n for n, m in change.workload.model.named_modules() if isinstance(m, QuantLinear)]


def test_all_sites_where_the_drop_bears_them(workload):
    found = within_drop(workload, StaticInt8(), 0.5)
    assert found.left == ()
    assert len(forms(found.change)) == 4


@pytest.mark.parametrize("share", [0.9, 0.5, 0.2])
def test_the_drop_is_kept_and_one_site_less_would_not_keep_it(workload, share):
    technique = StaticInt8(weight_bits=4)
    whole = within_drop(workload, technique, 1e9)
    allowed = share * whole.drop.value
    found = within_drop(workload, technique, allowed)
    assert found.left
    assert len(forms(found.change)) == 4 - len(found.left)
    now = judge(workload.evaluate, found.change.workload.model)
    before = judge(workload.evaluate, workload.model)
    assert float((before - now).mean()) == pytest.approx(found.drop.value)
    assert found.drop.value <= allowed
    sites = technique.sites(workload, capture(workload))
    one_less = tuple(s for s in sites.ok if s not in found.left[:-1])
    again = technique.apply(workload, type(sites)(one_less, {}))
    worse = judge(workload.evaluate, again.workload.model)
    assert float((before - worse).mean()) > allowed


def test_what_cannot_be_kept_is_refused(workload):
    with pytest.raises(NotApplicable, match="even at one site"):
        within_drop(workload, StaticInt8(weight_bits=4), 0.0)
    with pytest.raises(InputError, match="at least 0"):
        within_drop(workload, StaticInt8(), -0.1)
    bare = Workload(workload.model, workload.inputs)
    with pytest.raises(InputError, match="evaluate"):
        within_drop(bare, StaticInt8(), 0.1)
