"""Binary networks along trees: what is trained is what runs, the term shortens the trees."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from paredown import runtime
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.runtime import sparse_file
from paredown.runtime.binary_tree import spanning_tree
from paredown.runtime.forms_binary import BinaryConv, BinaryLinear
from paredown.techniques.quantize.binary_training import Emulated, Moments
from paredown.techniques.quantize.mst_bnn import MSTBNN, binary
from paredown.workload import TrainingData, Workload


class Net(nn.Module):
    """Every kind of layer that has a binary form, one that has none, and both ends."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16)
        self.wide, self.norm2 = nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.depth = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.mix, self.head = nn.Linear(32, 24), nn.Linear(24, 5)

    def forward(self, x):
        x = F.relu(self.norm(self.stem(x)))
        x = self.depth(F.relu(self.norm2(self.wide(x)))).mean((2, 3))
        return self.head(F.relu(self.mix(x)))


def workload():
    torch.manual_seed(0)
    model = Net().eval()
    x = torch.randn(48, 3, 12, 12)
    pairs = [((a,), model(a).argmax(1).detach()) for a in x.split(16)]
    data = TrainingData(lambda: pairs, F.cross_entropy)
    return Workload(model, (x[:5],), training=data, original=model, calibration=[x])


def done(technique, given):
    return technique.apply(given, technique.sites(given, capture(given)))


@pytest.mark.parametrize("layer", [
    nn.Linear(9, 5), nn.Conv2d(7, 6, 3, 2, 1), nn.Conv1d(4, 3, 3, padding="same", bias=False),
])  # fmt: skip
def test_what_is_trained_is_what_runs(layer):
    torch.manual_seed(0)
    channels = layer.weight.shape[1]
    shape = (4, channels) if layer.weight.ndim == 2 else (4, channels, 6, 5)[: layer.weight.ndim]
    x = torch.randn(shape)
    seen = Moments(1)
    seen.add(x)
    trained = Emulated(layer, seen)
    form = binary(layer)
    form.fill(trained.weight)
    form.gain, form.offset = trained.gain.detach(), trained.offset.detach()
    form.threshold = trained.threshold.detach()
    with torch.no_grad():
        assert torch.equal(form(x), trained(x))
    trained(x).square().sum().backward()
    for name in ("weight", "threshold", "gain", "offset"):
        assert getattr(trained, name).grad.abs().sum() > 0, name


def test_training_starts_near_the_layer():
    torch.manual_seed(0)
    layer, x = nn.Linear(400, 30), torch.randn(600, 400) * 2 + 1
    seen = Moments(-1)
    seen.add(x[:200])
    seen.add(x[200:])
    assert torch.allclose(seen.mean(), x.mean(0), atol=1e-5)
    assert torch.allclose(seen.spread(), x.std(0, correction=0), rtol=1e-4)
    with torch.no_grad():
        want, got = layer(x), Emulated(layer, seen)(x)
    apart = (got - want).square().mean() / want.var()
    assert 0.2 < float(apart) < 0.6  # signs alone keep (2 / pi) ** 2 of a product's variance, or so


def test_a_users_network_in_bits(tmp_path):
    given = workload()
    want = given.call()
    change = done(MSTBNN(steps=3), given)
    assert torch.equal(given.call(), want), "the caller's network is as it was"
    model = change.workload.model
    assert isinstance(model.wide, BinaryConv)
    assert isinstance(model.mix, BinaryLinear)
    assert isinstance(model.stem, nn.Conv2d)
    refused = MSTBNN().sites(given, capture(given)).refused
    assert "first layer" in refused["stem:weight"]
    assert "last layer" in refused["head:weight"]
    assert "groups" in refused["depth:weight"]
    assert {"stem:weight", "head:weight"} <= set(MSTBNN(ends=True).sites(given, capture(given)).ok)
    run = runtime.backend("eager").lower(change.workload.copy(), threads=1)
    assert torch.equal(run(*given.inputs), change.workload.call())
    sites = ("wide:weight", "mix:weight")
    assert run.realised("mst-bnn", sites).kept == sites
    # a bit for each weight, three floats for each channel and an offset where no bias was
    bits = [m for m in model.modules() if isinstance(m, (BinaryConv, BinaryLinear))]
    assert [m.signs.numel() for m in bits] == [32 * 9 * 16 // 8, 24 * 32 // 8]
    given.training = None
    again = MSTBNN(steps=3).rewrite(given, MSTBNN().sites(workload(), capture(workload())),
                                    change.decisions)  # fmt: skip
    assert torch.equal(again.workload.call(), change.workload.call())


def test_the_term_shortens_trees_and_files():
    given = workload()
    products, held = {}, {}
    for strength in (0.0, 1e-3):
        change = done(MSTBNN(steps=40, strength=strength, lr=3e-3), given)
        model = change.workload.model
        forms = [m for m in model.modules() if isinstance(m, (BinaryConv, BinaryLinear))]
        counted = [spanning_tree(m.weight_signs().numpy()) for m in forms]
        products[strength] = sum(t.bit_ops for t in counted)
        held[strength] = sparse_file.nbytes({"signs": forms[0].signs.data})
        values = change.decisions.values["trees"]
        assert [v[0] for v in values.values()] == [t.bit_ops for t in counted]
        assert "fewer bit products" in change.notes[0]
    assert products[1e-3] < 0.7 * products[0.0]
    assert held[1e-3] < 0.8 * held[0.0]


def test_it_says_where_it_cannot():
    for wrong in ({"strength": -1.0}, {"steps": -1}, {"task": 2.0}):
        with pytest.raises(InputError):
            MSTBNN(**wrong)
    given = workload()
    given.training = None
    assert "training data" in MSTBNN().sites(given, capture(given)).refused["wide:weight"]
