"""Binary layers: exact sums, packed as counted, trees in files, damage is refused."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from paredown.cost.execution import plan
from paredown.errors import ArtefactError, InputError
from paredown.graph.capture import capture
from paredown.runtime import binary, sparse_file
from paredown.runtime import binary_plan as plans
from paredown.runtime import binary_tree as trees
from paredown.runtime.eager import load_tensors, save_tensors
from paredown.runtime.forms_binary import BinaryConv, BinaryLinear
from paredown.workload import Workload


def filled(form, flips=0.5):
    """A form with channels that differ from one vector in a share of their inputs."""
    one = torch.where(torch.rand(form.shape[1:]) < 0.5, -1.0, 1.0)
    weight = one * torch.where(torch.rand(form.shape) < flips, -1.0, 1.0)
    form.fill(weight)
    form.gain.uniform_(0.1, 1)
    form.offset.normal_()
    form.threshold.normal_(0, 0.3)
    return form, weight


def signs(x, threshold, axis):
    shape = [-1 if d == axis % x.ndim else 1 for d in range(x.ndim)]
    return torch.where(x >= threshold.view(shape), 1.0, -1.0)


@pytest.mark.parametrize("n", [1, 7, 8, 63, 64, 65, 130])
def test_signs_are_packed_and_multiplied_exactly(n):
    torch.manual_seed(n)
    x, w, at = torch.randn(5, n), torch.randn(3, n), torch.randn(n) * 0.2
    x[0, 0], x[1, 0], x[2, 0] = at[0], float("nan"), float("inf")
    packed = binary.pack_signs(x, at)
    assert packed.shape == (5, -(-n // 64))
    assert packed.dtype == torch.int64
    wanted = torch.where(x < at, -1.0, 1.0) @ torch.where(w < 0, -1.0, 1.0).T
    got = binary.binary_product(packed, binary.pack_signs(w, torch.zeros(n)), n)
    assert torch.equal(got.float(), wanted)
    assert got.dtype == torch.int32


def test_the_operators_keep_their_contracts():
    x, at = torch.randn(3, 70), torch.zeros(70)
    words = binary.pack_signs(x, at)
    which = ("test_schema", "test_faketensor")
    scale = torch.rand(3), torch.randn(3)
    cases = {"pack_signs": (x, at), "binary_product": (words, words, 70)}
    cases["binary_layer"] = (words, words, 70, *scale)
    sums = binary.binary_product(*cases["binary_product"])
    assert torch.equal(binary.binary_layer(*cases["binary_layer"]), sums * scale[0] + scale[1])
    for op, args in cases.items():
        torch.library.opcheck(getattr(torch.ops.paredown, op).default, args, test_utils=which)
    for a, b, n in ((words, words[:, :1], 70), (words, words, 129), (words[0], words, 70)):
        with pytest.raises(InputError, match="words of"):
            binary.binary_product(a, b, n)


GEOMETRIES = [
    ((6, 5), (), (), ()),
    ((9, 70), (), (), ()),
    ((5, 3, 4), (2,), (1,), (2,)),
    ((8, 7, 3, 3), (1, 1), (1, 1), (1, 1)),
    ((8, 7, 3, 2), (2, 1), "valid", (1, 2)),
    ((8, 7, 2, 3), (1, 1), "same", (1, 1)),
    ((4, 65, 1, 1), (2, 2), (0, 0), (1, 1)),
    ((3, 2, 2, 2, 2), (1, 1, 1), (0, 1, 0), (1, 1, 1)),
]


@pytest.mark.parametrize(("shape", "stride", "padding", "dilation"), GEOMETRIES)
def test_the_layers_are_floats_of_signs(shape, stride, padding, dilation):
    torch.manual_seed(0)
    made = BinaryLinear(shape) if len(shape) == 2 else BinaryConv(shape, stride, padding, dilation)
    form, weight = filled(made)
    assert torch.equal(form.weight_signs(), weight)
    if len(shape) == 2:
        x = torch.randn(2, 3, shape[1])
        sums = F.linear(signs(x, form.threshold, -1), weight)
        assert torch.equal(form(x[0, 0]), form(x)[0, 0])
        wanted = sums * form.gain + form.offset
    else:
        x = torch.randn(2, shape[1], 9, 8, 7)[(..., *[0] * (5 - len(shape)))]
        s = signs(x, form.threshold, 1)
        kernel, sides = shape[2:], []
        for k, d, i in zip(kernel, dilation, itertools.count()):
            total = d * (k - 1) if padding == "same" else 0 if padding == "valid" else None
            sides.append((padding[i],) * 2 if total is None else (total // 2, total - total // 2))
        s = F.pad(s, [v for side in reversed(sides) for v in side], value=1.0)
        conv = (F.conv1d, F.conv2d, F.conv3d)[len(kernel) - 1]
        sums = conv(s, weight, None, stride, 0, dilation)
        assert torch.equal(form(x[0]), form(x)[0])
        wanted = sums * form.gain.view(-1, *[1] * len(kernel))
        wanted = wanted + form.offset.view(-1, *[1] * len(kernel))
    assert torch.equal(form.integers(x).float(), sums)
    assert torch.equal(form(x), wanted)
    assert form(x.bfloat16()).dtype == torch.bfloat16
    if len(shape) == 4:
        last = x.to(memory_format=torch.channels_last)
        assert torch.equal(form(last), wanted)
        assert form(last).is_contiguous(memory_format=torch.channels_last)
    assert form(x).is_contiguous()
    assert form.signs.numel() == shape[0] * (weight[0, 0].numel() * -(-shape[1] // 8))


def test_tree_order_gives_the_layers_own_sums():
    torch.manual_seed(1)
    form, weight = filled(BinaryConv((12, 7, 3, 3), (2, 2), (1, 1), (1, 1)), 0.1)
    x = torch.randn(2, 7, 9, 8)
    s = F.pad(signs(x, form.threshold, 1), [1] * 4, value=1.0)
    columns = F.unfold(s, 3, stride=2).transpose(1, 2).flatten(0, 1)
    tree = trees.spanning_tree(weight.numpy())
    along = trees.products(tree, weight.numpy(), columns.numpy())
    direct = form.integers(x).movedim(1, -1).flatten(0, -2)
    assert (along == direct.numpy()).all()
    along_it = plans.plan(weight.numpy(), tree, form.places().numpy())
    rows = form.patches(x).flatten(0, 2).numpy().view("uint64")
    assert (along == plans.sums(along_it, rows).T).all()


def test_a_product_is_counted_with_all_its_signs():
    net = nn.Sequential(filled(BinaryConv((8, 7, 3, 3), (1, 1), (1, 1), (1, 1)))[0])
    graph = capture(Workload(net.eval(), (torch.randn(2, 7, 6, 6),)))
    assert graph.macs == 2 * 36 * 8 * 7 * 9
    assert not graph.unpriced
    dtypes = {r.node.op: r.dtype for r in plan(graph, "eager")}
    assert dtypes["paredown::binary_layer"] == "int8"


@pytest.mark.parametrize("flips", [0.02, 0.5])
def test_a_file_holds_the_tree_and_gives_the_signs_back(tmp_path, flips):
    torch.manual_seed(0)
    form, weight = filled(BinaryConv((64, 32, 3, 3), (1, 1), (1, 1), (1, 1)), flips)
    net = nn.Sequential(form)
    held = {"0.signs": form.signs.data}
    plain = 64 * 9 * 32 // 8
    assert form.signs.numel() == plain
    small = sparse_file.nbytes(held)
    assert small <= plain
    assert (small < 0.3 * plain) == (flips == 0.02)
    save_tensors(net, tmp_path / "t.safetensors")
    with sparse_file.opened(tmp_path / "t.safetensors") as f:
        assert f.shape("0.signs") == tuple(form.signs.shape)
    again = nn.Sequential(BinaryConv((64, 32, 3, 3), (1, 1), (1, 1), (1, 1)))
    load_tensors(again, tmp_path / "t.safetensors")
    assert torch.equal(again[0].weight_signs(), weight)
    x = torch.randn(1, 32, 5, 5)
    assert torch.equal(again(x), net(x))


def test_a_damaged_code_is_refused(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(filled(BinaryLinear((40, 200)), 0.02)[0])
    path = tmp_path / "t.safetensors"
    save_tensors(net, path)
    with sparse_file.opened(path) as f:
        meta = f.metadata
    for spoilt in (lambda c: c[:-9], lambda c: c.clone().fill_(255), lambda c: c[8:]):
        raw = load_file(path)
        raw["0.signs"] = spoilt(raw["0.signs"])
        save_file(raw, tmp_path / "bad.safetensors", metadata=meta)
        with pytest.raises(ArtefactError, match="not readable"):
            load_tensors(net, tmp_path / "bad.safetensors")
    with pytest.raises(InputError, match="positive"):
        BinaryLinear((0, 4))
