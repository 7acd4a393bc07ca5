"""Capture records what a real run does, allocates nothing, and says where a model went wrong."""

import dataclasses
import gc
from pathlib import Path

import capture_networks as networks
import pytest
import torch
from capture_networks import NETWORKS, Branches, Masked, Raises, Tied, workload
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from paredown.errors import CaptureError
from paredown.graph import capture as capturing
from paredown.graph.capture import capture, fake, fake_workload
from paredown.graph.graph import Ref
from paredown.workload import Workload


class Names(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.seen.append(func._schema.name)
        return func(*args, **(kwargs or {}))


def real_names(w):
    with torch.no_grad(), Names() as names:
        w.model(*w.inputs, **w.kwargs)
    return names.seen


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_operators_are_those_of_a_real_run(name):
    w = workload(name)
    assert [n.op for n in capture(w).nodes] == real_names(w)


def test_attention_is_captured_as_the_kernel_the_cpu_runs():
    ops = [n.op for n in capture(workload("attention")).nodes]
    assert ops.count("aten::_scaled_dot_product_flash_attention_for_cpu") == 2
    fused = [n.op for n in capture(workload("encoder")).nodes]
    assert fused.count("aten::_transformer_encoder_layer_fwd") == 2


def test_nodes_name_their_module_and_the_users_line():
    g = capture(workload("attention"))
    attention = next(n for n in g.nodes if "attention" in n.op)
    assert attention.module == "0"
    file, line = attention.line.split(":")
    assert file == "capture_networks.py"
    text = Path(networks.__file__).read_text().splitlines()[int(line) - 1]
    assert "scaled_dot_product_attention" in text
    assert {n.module for n in g.nodes if n.op == "aten::addmm"} == {
        "0.qkv",
        "0.out",
        "1.qkv",
        "1.out",
    }
    assert g.modules["1.qkv"] == "Linear"


def test_arguments_hold_references_and_plain_values():
    node = next(n for n in capture(workload("cnn")).nodes if n.op == "aten::convolution")
    assert node.args[:2] == (Ref(node.inputs[0]), Ref(node.inputs[1]))
    assert node.args[3:] == ([1, 1], [1, 1], [1, 1], False, [0, 0], 1)


def test_views_share_their_storage_and_in_place_results_too():
    g = capture(workload("cnn"))
    relu = next(n for n in g.nodes if n.op == "aten::relu_")
    (x,), (y,) = relu.inputs, relu.outputs
    assert x != y
    assert g.tensors[x].storage == g.tensors[y].storage
    t = next(n for n in g.nodes if n.op == "aten::t")
    assert g.tensors[t.inputs[0]].storage == g.tensors[t.outputs[0]].storage
    assert t.view
    assert t.bytes_read == 0


def test_lifetimes_are_those_of_the_run():
    g = capture(workload("cnn"))
    first = next(n for n in g.nodes if n.op == "aten::convolution")
    out = g.storages[g.tensors[first.outputs[0]].storage]
    norm = next(n for n in g.nodes if n.op == "aten::native_batch_norm")
    assert (out.created, out.freed) == (first.index, norm.index)
    last = g.storages[g.tensors[g.outputs[0]].storage]
    assert last.freed is None


def test_ties_and_kinds():
    g = capture(workload("tied"))
    assert g.params == 20 * 8
    assert isinstance(g.source.model, Tied)
    assert g.source.model.head.weight is g.source.model.embed.weight
    kinds = [(t.kind, t.name) for t in g.tensors.values() if t.kind != "intermediate"]
    assert kinds == [("parameter", "embed.weight"), ("input", "input0")]


def test_the_callers_model_is_not_touched():
    w = workload("cnn")
    w.model.train()
    before = {k: v.clone() for k, v in w.model.state_dict().items()}
    capture(w)
    capture(w, train=True)
    assert w.model.training
    after = w.model.state_dict()
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert all(p.grad is None for p in w.model.parameters())


def test_hooks_are_gone_afterwards_also_after_an_error():
    from torch.nn.modules import module as m

    def count():
        return len(m._global_forward_pre_hooks), len(m._global_forward_hooks)

    before = count()
    capture(workload("cnn"))
    with pytest.raises(CaptureError):
        capture(Workload(Raises(), (torch.randn(2, 4),)))
    assert count() == before


def test_meta_models_take_no_memory_and_price_the_same():
    with torch.device("meta"):
        on_meta = networks.cnn().eval()
    real = capture(workload("cnn"))
    g = capture(Workload(on_meta, (torch.randn(2, 3, 16, 16),)))
    assert [(n.op, n.macs) for n in g.nodes] == [(n.op, n.macs) for n in real.nodes]
    with torch.device("meta"):
        huge = nn.Linear(2**20, 2**20)
    assert capture(Workload(huge, (torch.randn(1, 2**20),))).macs == 2**40


def test_a_fake_workload_can_be_edited_and_captured_again():
    w = fake_workload(workload("cnn"))
    edited = w.copy()
    with fake(edited):
        edited.model[7] = nn.Linear(16, 5)
    g = capture(edited, already_fake=True)
    assert g.tensors[g.outputs[0]].shape == (2, 5)
    assert capture(w, already_fake=True).macs - g.macs == 2 * 16 * 5
    with pytest.raises(CaptureError, match="not a fake workload"), fake(workload("cnn")):
        raise AssertionError("entered")


def test_dict_inputs_masks_and_nested_outputs():
    x = torch.randn(2, 3, 4)
    full = {"x": x, "mask": torch.ones(2, 3, dtype=torch.bool)}
    part = {"x": x, "mask": torch.tensor([[True, True, False]] * 2)}
    for batch, multiplies in ((full, 0), (part, 1)):
        w = Workload(Masked(), (batch,), {"scale": torch.ones(1)})
        g = capture(w)
        assert [n.op for n in g.nodes] == real_names(w)
        assert sum(n.op == "aten::mul" for n in g.nodes) == multiplies
        assert len(g.outputs) == 4
        names = [g.tensors[t].name for t in g.inputs]
        assert names == ["input0.x", "input0.mask", "scale"]
        assert not g.notes


def test_a_branch_on_data_is_retried_with_real_weights():
    g = capture(Workload(Branches(), (torch.randn(2, 4),)))
    assert "aten::_local_scalar_dense" in [n.op for n in g.nodes]
    assert "real weights" in g.notes[0]
    assert "if y.sum() > 1e9" in g.notes[0]


def test_a_branch_on_data_that_does_not_fit_names_the_line(monkeypatch):
    monkeypatch.setattr(capturing, "free_memory", lambda: 0)
    with pytest.raises(
        CaptureError, match=r"branches on data at capture_networks.py:\d+: `if y.sum"
    ):
        capture(Workload(Branches(), (torch.randn(2, 4),)))


def test_a_model_that_raises_shows_its_own_last_line():
    with pytest.raises(CaptureError, match=r"capture_networks.py:\d+: `return y.view\(7, 7\)") as e:
        capture(Workload(Raises(), (torch.randn(2, 4),), name="broken"))
    assert str(e.value).startswith("broken raised in forward")
    assert "\n" not in str(e.value)


def test_a_wrong_input_shape_is_refused():
    with pytest.raises(CaptureError, match="raised in forward"):
        capture(Workload(nn.Linear(4, 4), (torch.randn(2, 5),)))


def test_training_step_has_three_phases_and_backward_knows_its_modules():
    w = workload("attention")
    forward, g = capture(w), capture(w, train=True)
    phases = [n.phase for n in g.nodes]
    assert phases == sorted(phases, key=["forward", "backward", "optimizer"].index)
    assert {"forward", "backward", "optimizer"} == set(phases)
    back = {n.module for n in g.nodes if n.phase == "backward" and n.op == "aten::mm"}
    assert back == {"0.qkv", "0.out", "1.qkv", "1.out"}
    linear = sum(n.macs for n in forward.nodes if n.op == "aten::addmm")
    linear_back = sum(n.macs for n in g.nodes if n.phase == "backward" and n.op == "aten::mm")
    # Every linear owes two gradients; the first one's input comes out of a norm with weights.
    assert linear_back == 2 * linear
    adam = next(n for n in g.nodes if n.phase == "optimizer" and "adamw" in n.op)
    weights = sum(p.numel() for p in w.model.parameters())
    assert adam.bytes_written >= 3 * 4 * weights
    assert not g.unpriced


def test_a_loop_is_not_trained():
    w = dataclasses.replace(workload("cnn"), run="generate")
    with pytest.raises(CaptureError, match="'generate' is not trained"):
        capture(w, train=True)


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
def test_quantized_modules_are_captured_with_their_packed_weights():
    q = torch.ao.quantization.quantize_dynamic(nn.Sequential(nn.Linear(64, 32)), {nn.Linear})
    g = capture(Workload(q, (torch.randn(4, 64),)))
    (node,) = g.nodes
    assert (node.op, node.macs) == ("quantized::linear_dynamic", 4 * 64 * 32)
    assert g.params == 64 * 32


def test_capture_leaves_no_tensor_alive():
    from torch._subclasses.fake_tensor import FakeTensor

    def fakes():
        gc.collect()
        # type(), not isinstance: that would read __class__ of every lazy object there is.
        return {id(o): o for o in gc.get_objects() if type(o) is FakeTensor}

    before = fakes()  # of other tests' exports
    g = capture(workload("cnn"))
    g.source = None
    assert not fakes().keys() - before.keys()


def test_a_thousand_operators_take_less_than_five_seconds():
    import time

    net = nn.Sequential(*(m for _ in range(500) for m in (nn.Linear(8, 8), nn.ReLU())))
    w = Workload(net, (torch.randn(1, 8),))
    start = time.perf_counter()
    g = capture(w)
    assert len(g.nodes) >= 1000
    assert time.perf_counter() - start < 5


def test_inference_mode_around_a_capture_changes_nothing():
    w = workload("cnn")
    expected = [n.op for n in capture(w).nodes]
    with torch.inference_mode():
        inside = capture(Workload(w.model, (torch.randn(2, 3, 16, 16),)))
    assert [n.op for n in inside.nodes] == expected
    with torch.inference_mode():
        x = torch.randn(2, 3, 16, 16)
    assert [n.op for n in capture(Workload(w.model, (x,))).nodes] == expected


def test_packed_sequences_are_priced():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(8, 16, batch_first=True)

        def forward(self, x):
            lengths = torch.tensor([5, 3])
            packed = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True)
            return self.rnn(packed)[0].data

    g = capture(Workload(Packed(), (torch.randn(2, 5, 8),)))
    assert not g.unpriced
    assert g.macs == 8 * 4 * 16 * (8 + 16)
