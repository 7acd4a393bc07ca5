"""RoutedViT: both executions, the static network, the count of work, early stop, the budget."""

import pytest
import torch
from torch import nn

from paredown import device
from paredown.cost.over_inputs import figures_over_inputs
from paredown.errors import InputError
from paredown.graph.capture import capture, capture_run
from paredown.graph.varying import cannot_compile
from paredown.nn.token_routing import Node, ReducedBlock, RouteGate
from paredown.workload import Workload
from paredown.zoo.token_routing import RoutedViT, loss

SMALL = {
    "widths": (16, 24, 32),
    "layers": 4,
    "num_classes": 10,
    "in_channels": 1,
    "image_size": 32,
    "heads": (2, 2, 4),
    "reductions": (4, 2, 1),
    "ratios": (2, 2, 2),
}


def network(spread=1.0, bias=0.0, seed=0):
    """A small network with weights of ordinary size, gates spread around ``bias``."""
    torch.manual_seed(seed)
    net = RoutedViT(**SMALL).eval()
    for m in net.modules():
        if isinstance(m, nn.Linear):
            nn.init.xavier_uniform_(m.weight)
    for m in net.modules():
        if isinstance(m, RouteGate):
            nn.init.normal_(m.proj.weight, std=spread)
            nn.init.constant_(m.proj.bias, bias)
    return net


def images(n=5, seed=0):
    return torch.randn(n, 1, 32, 32, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("bias", [-1.0, 0.0, 1.0])
@pytest.mark.parametrize("batch", [1, 5])
def test_gathered_execution_equals_masked(bias, batch):
    net, x = network(bias=bias), images(batch)
    with torch.inference_mode():
        (masked, macs), (gathered, same) = (net.route(x, gathered=g) for g in (False, True))
        assert masked.abs().max() > 0.1
        torch.testing.assert_close(gathered, masked, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gathered, net(x), rtol=0, atol=0)
    assert torch.equal(macs, same)
    assert macs.max() < net.full_macs
    assert batch == 1 or len(set(macs.tolist())) > 1


def test_open_gates_are_the_static_network():
    net, static = network(spread=0.0, bias=1.0), RoutedViT(**SMALL, routed=False).eval()
    missing, unexpected = static.load_state_dict(net.state_dict(), strict=False)
    assert not missing
    assert unexpected
    assert all(".gate." in name for name in unexpected)
    x = images()
    with torch.inference_mode():
        torch.testing.assert_close(net(x), static(x), rtol=1e-5, atol=1e-5)
    assert set(net.macs(x).tolist()) == {net.full_macs}
    assert static.macs(x).tolist() == [static.full_macs] * 5
    assert capture(Workload(static, (x[:1],))).macs == static.full_macs
    assert cannot_compile(static, "openvino") is None
    assert "openvino" in str(cannot_compile(net, "openvino"))


def test_the_counter_equals_the_budget_formula():
    net, x = network(), images()
    counted = [capture_run(Workload(net, (i,)), (i,)).macs for i in x.split(1)]
    assert counted == net.macs(x).tolist()
    w = Workload(net, (x[:1],), population=list(x.split(1)))
    found = figures_over_inputs(w, device.load("xeon-8480"))["macs"]
    assert (found.value, found.n) == (pytest.approx(float(net.macs(x).mean())), 5)


def test_a_preview_is_priced_at_the_expected_shares():
    net, x = network(), images()
    w = Workload(net, (x[:1],))
    assert capture(w).macs == net.full_macs
    net.expect(x.split(2))
    assert capture(w).macs == round(float(net.macs(x).mean()))
    with pytest.raises(InputError, match="no images"):
        net.expect([])


def test_a_token_whose_gates_are_shut_is_final():
    net, x = network(spread=0.0, bias=-1.0), images()
    assert set(net.macs(x).tolist()) == {net.fixed_macs + 64 * 16 * 3}
    with torch.inference_mode():
        tokens = net.stem_norm(net.stem(x).flatten(2).mT) + net.position
        pooled = torch.zeros(5, sum(SMALL["widths"]))
        pooled[:, :16] = net.norms[0](tokens).mean(1)
        torch.testing.assert_close(net(x), net.head(pooled))


@pytest.mark.parametrize("gathered", [False, True])
def test_every_token_of_a_node_goes_where_its_gates_say(gathered):
    torch.manual_seed(0)
    node = Node(ReducedBlock(8, 2, 4, 2, 2.0), 8, 12, last=False, gated=True).eval()
    nn.init.normal_(node.gate.proj.weight, std=1.0)
    present = (torch.rand(3, 16, 1) > 0.3).float()
    x = torch.randn(3, 16, 8) * present
    with torch.inference_mode():
        went = node(x, present, gathered=gathered)
        gates = (node.gate(x) > 0) & (present > 0)
        block, stay, down = (g.unsqueeze(-1) for g in gates.unbind(-1))
        same = (went.x == x).all(-1, keepdim=True)
        assert torch.equal(same, ~block)
        assert torch.equal(went.stays > 0, stay)
        assert torch.equal(went.ends > 0, (present > 0) & ~stay & ~down)
        assert went.ends.sum() > 0
        # Cells of four neighbours: rows 2i, 2i + 1, columns 2j, 2j + 1.
        whole = (went.x * down).reshape(3, 4, 4, 8)
        for i in range(2):
            for j in range(2):
                corner = whole[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].flatten(1)
                any_down = down.reshape(3, 4, 4)[:, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2]
                open_ = any_down.flatten(1).any(1, keepdim=True)
                want = node.merge.norm(node.merge.proj(corner)) * open_
                torch.testing.assert_close(went.lower[:, 2 * i + j], want, rtol=1e-5, atol=1e-5)
                assert torch.equal(went.below[:, 2 * i + j] > 0, open_)


def test_the_loss_reaches_every_gate_and_vanishes_at_the_budget():
    net, x = network(bias=0.5).train(), images()
    target = torch.arange(5)
    out = net(x)
    ce = nn.functional.cross_entropy(out[0], target)
    off = float(out[1].detach().mean()) - 0.3
    torch.testing.assert_close(loss(out, target, budget=0.3, weight=2.0), ce + 2 * off**2)
    torch.testing.assert_close(loss(out, target, budget=off + 0.3, weight=2.0), ce)
    (out[1].mean() - 0.3).square().backward()
    gates = [m.proj.weight.grad for m in net.modules() if isinstance(m, RouteGate)]
    assert len(gates) == 9
    assert all(g is not None and g.abs().sum() > 0 for g in gates)


def test_the_budget_is_reached_by_training_the_gates_alone():
    net, x = network(spread=0.1, bias=1.0).train(), images(8)
    gates = [p for m in net.modules() if isinstance(m, RouteGate) for p in m.parameters()]
    optimizer = torch.optim.Adam(gates, 0.05)
    for _ in range(25):
        (net(x)[1].mean() - 0.4).square().backward()
        optimizer.step()
        net.zero_grad()
    with torch.no_grad():
        assert sum(float(net(x)[1].mean()) for _ in range(5)) / 5 == pytest.approx(0.4, abs=0.08)


@pytest.mark.parametrize(
    "wrong",
    [{"layers": 2}, {"image_size": 24}, {"heads": (2, 2)}, {"heads": (3, 2, 2)}, {"patch": 5}],
)
def test_what_does_not_divide_is_refused(wrong):
    with pytest.raises(InputError):
        RoutedViT(**{**SMALL, **wrong})


def test_images_of_another_size_are_refused():
    with pytest.raises(InputError, match="32x32"):
        network()(torch.randn(1, 1, 64, 64))


def test_noise_makes_a_gate_a_gumbel_sigmoid():
    gate = RouteGate(4, 2, noise=1.0)
    nn.init.zeros_(gate.proj.weight)
    gate.proj.bias.data = torch.tensor([0.0, 1.5])
    torch.manual_seed(0)
    opened = gate(torch.randn(20_000, 4)).detach().round()
    assert set(opened.unique().tolist()) == {0.0, 1.0}
    torch.testing.assert_close(opened.mean(0), gate.proj.bias.sigmoid(), rtol=0, atol=0.02)
    assert gate.eval()(torch.randn(5, 4)).tolist() == [[0.0, 1.0]] * 5
