"""bf16: the boundary keeps its dtypes, ties stay tied, what is left out stays float32."""

import torch
from quant_nets import bert, error, first, gpt2, llama, mobile, vit
from torch import nn
from torch.nn import functional as F

from paredown.graph.capture import capture
from paredown.techniques.quantize.bf16 import BF16
from paredown.workload import Workload


def halved(workload, patterns=("*",), except_=()):
    technique = BF16()
    sites = technique.sites(workload, capture(workload)).only(patterns, except_)
    return technique.apply(workload, sites).workload


def products(workload):
    """Dtype of the first input of every matrix product and convolution, by module."""
    graph = capture(workload)
    ops = ("aten::convolution", "aten::addmm", "aten::mm", "aten::linear", "aten::bmm")
    return {n.module: graph.tensors[n.inputs[-1]].dtype for n in graph.nodes if n.op in ops}


def test_everything_computes_in_bf16_and_returns_float32():
    for make in (vit, bert, gpt2, llama):
        now = halved(make())
        assert set(products(now).values()) == {"bfloat16"}
        assert first(now.call()).dtype == torch.float32


def test_integer_inputs_and_nested_outputs_pass():
    now = halved(bert())
    out = now.call()
    assert {t.dtype for t in (out.last_hidden_state, out.pooler_output)} == {torch.float32}


def test_statistics_and_frequencies_stay_float32():
    model = halved(mobile()).model
    assert model.stem[1].running_var.dtype == torch.float32
    assert model.stem[0].weight.dtype == torch.bfloat16
    rope = halved(llama()).model.model.rotary_emb
    assert rope.inv_freq.dtype == torch.float32


def test_a_site_left_out_computes_in_float32():
    now = halved(vit(), except_=["head", "blocks.0"])
    seen = products(now)
    assert seen["head"] == "float32"
    assert seen["blocks.0.fc1"] == "float32"
    assert seen["blocks.1.fc1"] == "bfloat16"
    assert error(first(vit().call()), first(now.call())) < 0.02
    assert first(now.call()).dtype == torch.float32


def test_ties_stay_tied_and_move_together():
    workload = gpt2()
    now = halved(workload)
    assert now.model.lm_head.weight is now.model.transformer.wte.weight
    assert workload.model.lm_head.weight.dtype == torch.float32
    sites = BF16().sites(workload, capture(workload))
    assert "lm_head:dtype" in sites.ok
    assert "together with lm_head" in sites.refused["transformer.wte:dtype"]
    out = halved(workload, except_=["lm_head"])
    assert out.model.lm_head.weight.dtype == torch.float32
    assert out.model.lm_head.weight is out.model.transformer.wte.weight
    assert products(out)["lm_head"] == "float32"


class Outside(nn.Module):
    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.attn(x, x, x)[0])


def test_weights_read_from_outside_follow_their_reader():
    workload = Workload(Outside().eval(), (torch.randn(2, 5, 8),))
    sites = BF16().sites(workload, capture(workload))
    assert set(sites.ok) == {"attn:dtype", "head:dtype"}
    now = halved(workload, except_=["attn"])
    assert now.model.attn.out_proj.weight.dtype == torch.float32
    assert error(workload.call(), now.call()) < 0.02


class Timestep(nn.Module):
    """Makes its own float32 tensor, which bf16 weights cannot take."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(4, 4)

    def forward(self, x):
        return F.relu(self.fc(torch.ones(x.shape)))


def test_a_model_that_mixes_dtypes_is_refused():
    workload = Workload(Timestep().eval(), (torch.randn(2, 4),))
    sites = BF16().sites(workload, capture(workload))
    assert sites.ok == ()
    assert "bfloat16 with float32" in sites.refused["fc:dtype"]


def test_only_float32_weights_turn():
    model = nn.Sequential(nn.Linear(4, 4)).double().eval()
    workload = Workload(model, (torch.randn(1, 4).double(),))
    sites = BF16().sites(workload, capture(workload))
    assert sites.refused == {"0:dtype": "its weights are float64, not float32"}
