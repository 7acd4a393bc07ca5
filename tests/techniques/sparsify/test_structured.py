"""Structured pruning: zero channels leave outputs equal, shapes equal the preview's, shares are
real.
"""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from paredown.editing import replay
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.technique import Sites
from paredown.techniques.sparsify.structured import StructuredPruning
from paredown.workload import TrainingData, Workload


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.na = nn.Conv2d(3, 16, 3, bias=False), nn.BatchNorm2d(16)
        self.b, self.nb = nn.Conv2d(16, 24, 3, bias=False), nn.BatchNorm2d(24)
        self.head = nn.Linear(24 * 4 * 4, 5)

    def forward(self, x):
        x = F.relu(self.na(self.a(x)))
        return self.head(F.relu(self.nb(self.b(x))).flatten(1))


class Inverted(nn.Module):
    """A MobileNetV2 block in a residual stream: stem, two inverted bottlenecks, head."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(16, 48, 1, bias=False),
                nn.BatchNorm2d(48),
                nn.ReLU6(),
                nn.Conv2d(48, 48, 3, padding=1, groups=48, bias=False),
                nn.BatchNorm2d(48),
                nn.ReLU6(),
                nn.Conv2d(48, 16, 1, bias=False),
                nn.BatchNorm2d(16),
            )
            for _ in range(2)
        )
        self.head = nn.Linear(16, 7)

    def forward(self, x):
        x = self.stem(x)
        for b in self.blocks:
            x = x + b(x)
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenations in the manner of DenseNet, then a channel shuffle and a grouped
    convolution.
    """

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.a = nn.Conv2d(8, 8, 3, padding=1)
        self.b = nn.Conv2d(16, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(24)
        self.mix = nn.Conv2d(24, 16, 1, groups=2)
        self.head = nn.Linear(16, 4)

    def forward(self, x):
        x = self.stem(x)
        x = torch.cat([x, F.relu(self.a(x))], 1)
        x = torch.cat([x, F.relu(self.b(x))], 1)
        return self.head(F.relu(self.mix(self.norm(x))).mean((2, 3)))


class Gated(nn.Module):
    """Packed attention as timm writes it, a gated feed-forward, layer norms around a stream."""

    def __init__(self, heads=4, dim=32):
        super().__init__()
        self.num_heads, self.head_dim = heads, dim // heads
        self.embed = nn.Linear(6, dim)
        self.n1, self.n2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.up, self.down = nn.Linear(dim, 128), nn.Linear(64, dim)
        self.head = nn.Linear(dim, 5)

    def forward(self, x):
        x = self.embed(x)
        b, n, _ = x.shape
        qkv = self.qkv(self.n1(x)).reshape(b, n, 3, self.num_heads, self.head_dim)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2)
        x = x + self.proj(out.reshape(b, n, self.num_heads * self.head_dim))
        gate, up = self.up(self.n2(x)).chunk(2, -1)
        return self.head(x + self.down(F.silu(gate) * up))


NETS = {
    "plain": (Plain, (2, 3, 8, 8)),
    "inverted": (Inverted, (2, 3, 8, 8)),
    "dense": (Dense, (2, 3, 8, 8)),
    "gated": (Gated, (2, 5, 6)),
}


def workload(name):
    torch.manual_seed(0)
    cls, shape = NETS[name]
    model = cls().eval()
    for m in model.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.running_mean, -0.5, 0.5)
            nn.init.uniform_(m.running_var, 0.5, 1.5)
    return Workload(model, (torch.randn(shape),), name=name)


def silence(model, site, graph, units):
    """Make units of a group do nothing: zero what produces and shifts them."""
    from paredown.graph.dependency import Dependencies

    group = Dependencies(graph)[site]
    for m in group.members:
        if m.role not in ("out", "scale") or "running" in m.name:
            continue
        t = model.get_parameter(m.name)
        hit = torch.tensor([u in units for u in group.units(m).tolist()])
        with torch.no_grad():
            t.index_fill_(m.dim, hit.nonzero().flatten(), 0.0)


@pytest.mark.parametrize("name", NETS)
def test_cutting_zero_units_leaves_the_output(name):
    w = workload(name)
    graph = capture(w)
    technique = StructuredPruning(share=0.25, round_to=1)
    sites = technique.sites(w, graph)
    assert sites.ok
    for site in sites.ok:
        size = technique.decide(w, Sites((site,))).values["of"][site]
        units = list(range(0, size, 4))[: size - round(size * 0.75)]
        fresh = w.own()
        silence(fresh.model, site, graph, set(units))
        change = technique.apply(fresh, Sites((site,)))
        gone = set(range(size)) - set(change.decisions.values["kept"][site])
        assert gone == set(units)
        torch.testing.assert_close(change.workload.call(), fresh.call(), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", NETS)
def test_shapes_equal_the_preview_and_the_input_is_untouched(name, streams):
    w = workload(name)
    before = copy.deepcopy(w.model.state_dict())
    graph = capture(w)
    technique = StructuredPruning(share=0.5, streams=streams, round_to=1)
    sites = technique.sites(w, graph)
    change = technique.apply(w, sites)
    after = capture(change.workload)
    preview = technique.preview(graph, sites).graph
    assert [(n.op, [after.tensors[t].shape for t in n.outputs]) for n in after.nodes] == [
        (n.op, [preview.tensors[t].shape for t in n.outputs]) for n in preview.nodes
    ]
    assert change.workload.call().shape == w.call().shape
    for key, value in w.model.state_dict().items():
        assert torch.equal(value, before[key])
    assert all(
        k * 2 == change.decisions.values["of"][s]
        for s, k in ((s, len(k)) for s, k in change.decisions.values["kept"].items())
    )


def test_the_promised_share_leaves_every_group():
    """Halving both groups of a plain chain: the middle convolution keeps exactly a quarter."""
    w = workload("plain")
    technique = StructuredPruning(share=0.5, round_to=1)
    model = technique.apply(w, technique.sites(w, capture(w))).workload.model
    assert tuple(model.a.weight.shape) == (8, 3, 3, 3)
    assert tuple(model.b.weight.shape) == (12, 8, 3, 3)
    assert model.b.weight.numel() * 4 == w.model.b.weight.numel()
    assert (model.b.in_channels, model.b.out_channels, model.nb.num_features) == (8, 12, 12)
    assert model.head.in_features == 12 * 16


def test_channels_stay_multiples():
    w = workload("plain")
    technique = StructuredPruning(share=0.375, round_to=8)
    kept = technique.apply(w, technique.sites(w, capture(w))).decisions.values["kept"]
    assert {s: len(k) for s, k in kept.items()} == {"a:out": 8, "b:out": 16}


def test_replay_on_a_fresh_structure_gives_the_same_outputs():
    w = workload("gated")
    technique = StructuredPruning(share=0.5, streams=True)
    change = technique.apply(w, technique.sites(w, capture(w)))
    fresh = replay(Gated().eval(), change.edits)
    fresh.load_state_dict(change.workload.model.state_dict())
    torch.testing.assert_close(fresh(*w.inputs), change.workload.call(), atol=0, rtol=0)


def test_refusals_say_why():
    w = workload("inverted")
    sites = StructuredPruning().sites(w, capture(w))
    assert sites.refused["head:out"] == "model output"
    assert "residual stream" in sites.refused["stem:out"]
    with pytest.raises(NotApplicable, match=r"residual stream|model output"):
        StructuredPruning().apply(w, Sites((), sites.refused))


def test_a_size_outside_plain_attributes_is_refused_not_broken():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.head = nn.Linear(6, 32), nn.Linear(8, 3)

        def forward(self, x):
            return self.head(self.a(x).view(-1, 4, 8).sum(1))

    class Config(nn.Module):
        def __init__(self):
            super().__init__()
            self._n = 16
            self.a, self.head = nn.Linear(6, 16), nn.Linear(16, 3)

        def forward(self, x):
            return self.head(self.a(x).view(-1, self._n).relu())

    w = Workload(Config().eval(), (torch.randn(2, 6),))
    sites = StructuredPruning(round_to=1).sites(w, capture(w))
    assert sites.ok == ()
    assert "does not run" in sites.refused["a:out"]
    w = Workload(Stubborn().eval(), (torch.randn(2, 6),))
    assert "a:out" not in StructuredPruning(round_to=1).sites(w, capture(w)).ok


def test_bad_knobs_are_refused():
    for bad in ({"share": 1.0}, {"importance": "luck"}, {"scope": "galaxy"}, {"round_to": 0}):
        with pytest.raises(InputError):
            StructuredPruning(**bad)


@pytest.mark.parametrize("importance", ["taylor", "activation"])
def test_data_driven_scores_drop_what_the_data_never_uses(importance):
    """Units with large weights behind inputs that are always zero: only data can tell."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8, bias=False), nn.ReLU(), nn.Linear(8, 3)).eval()
    with torch.no_grad():
        model[0].weight[:4] = 0.0
        model[0].weight[:4, 3] = 50.0
    data = [torch.cat([torch.randn(16, 3), torch.zeros(16, 1)], 1) for _ in range(3)]
    training = TrainingData(
        lambda: [((x,), x.sum(1)) for x in data], lambda y, t: (y.sum(1) - t).square().mean()
    )
    w = Workload(model, (data[0],), calibration=data, training=training)
    by_weight = StructuredPruning(share=0.5, round_to=1)
    sites = by_weight.sites(w, capture(w))
    assert by_weight.apply(w, sites).decisions.values["kept"]["0:out"] == [0, 1, 2, 3]
    by_data = StructuredPruning(share=0.5, round_to=1, importance=importance)
    assert by_data.apply(w, sites).decisions.values["kept"]["0:out"] == [4, 5, 6, 7]


def test_global_scope_cuts_where_it_hurts_least():
    w = workload("plain")
    with torch.no_grad():
        w.model.b.weight[:12] *= 1e-3
        w.model.nb.weight[:12] *= 1e-3
        w.model.nb.bias[:12] *= 1e-3
    technique = StructuredPruning(share=0.25, round_to=1, scope="global")
    kept = technique.apply(w, technique.sites(w, capture(w))).decisions.values["kept"]
    assert len(kept["b:out"]) < 18
    assert len(kept.get("a:out", range(16))) > 12


def test_same_indices_as_torch_pruning_give_the_same_network():
    import torch_pruning as tp

    for name, layer, site in (
        ("plain", "a", "a:out"),
        ("inverted", "blocks.0.0", "blocks.0.0:out"),
        ("inverted", "stem", "stem:out"),
        ("dense", "a", "a:out"),
    ):
        w = workload(name)
        technique = StructuredPruning(share=0.5, round_to=1, streams=True)
        if name == "dense":  # a grouped consumer: torch-pruning has no rule for uneven segments
            w.model.mix = nn.Conv2d(24, 16, 1).eval()
        change = technique.apply(w, Sites((site,)))
        kept = set(change.decisions.values["kept"][site])
        gone = [i for i in range(change.decisions.values["of"][site]) if i not in kept]
        theirs = copy.deepcopy(w.model)
        graph = tp.DependencyGraph().build_dependency(theirs, w.inputs[0])
        graph.get_pruning_group(
            theirs.get_submodule(layer), tp.prune_conv_out_channels, gone
        ).prune()
        for key, value in theirs.state_dict().items():
            assert change.workload.model.state_dict()[key].shape == value.shape, key
        torch.testing.assert_close(theirs(w.inputs[0]), change.workload.call())


def test_after_a_split_layer_its_parts_are_groups_and_the_output_stays():
    from paredown.techniques.factorize.low_rank import LowRank

    w = workload("plain")
    split = LowRank(round_to=1).apply(w, Sites(("b:weight",))).workload
    technique = StructuredPruning(share=0.5, round_to=1)
    sites = technique.sites(split, capture(split))
    assert {"b.first:out", "b.second:out", "a:out"} == set(sites.ok)
    assert technique.apply(split, sites).workload.call().shape == w.call().shape
    with pytest.raises(NotApplicable, match="model output"):
        technique.apply(split, Sites(("head:out",)))


def test_moving_a_factor_to_the_next_layer_moves_no_rank():
    """Units rescaled between layers, and before batch norms, compute and rank the same."""
    torch.manual_seed(0)
    x = torch.randn(4, 3, 8, 8)
    model = Plain().eval()
    for norm in (model.na, model.nb):
        norm.weight.data.uniform_(0.5, 2)
    model(x)

    def kept(net):
        workload = Workload(net, (x,))
        technique = StructuredPruning(share=0.5, round_to=1)
        sites = technique.sites(workload, capture(workload))
        return technique.decide(workload, sites).values["kept"]

    moved = copy.deepcopy(model)
    f = torch.logspace(-2, 2, 16)[torch.randperm(16)]
    with torch.no_grad():
        # Past the ReLU into the next weights, and in front of the norm that takes it away.
        moved.na.weight.mul_(f)
        moved.na.bias.mul_(f)
        moved.b.weight.div_(f.reshape(1, -1, 1, 1))
        g = torch.logspace(-1, 1, 24)
        moved.b.weight.mul_(g.reshape(-1, 1, 1, 1))
        moved.nb.running_mean.mul_(g)
        moved.nb.running_var.mul_(g * g)
    assert torch.allclose(model(x), moved(x), atol=1e-3)
    first, second = kept(model), kept(moved)
    assert first == second
