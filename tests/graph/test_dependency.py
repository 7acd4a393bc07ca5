"""Dependency groups on Hugging Face models with random weights: heads, grouped heads, windows,
ties.
"""

import pytest
import torch

from paredown.graph.capture import capture
from paredown.graph.dependency import Dependencies
from paredown.techniques.sparsify.structured import StructuredPruning
from paredown.workload import Workload

transformers = pytest.importorskip("transformers")

IDS = torch.arange(9)[None]
IMAGE = torch.randn(2, 3, 32, 32)


def llama():
    c = transformers.LlamaConfig(
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=8,
        num_key_value_heads=4,
        vocab_size=99,
    )
    return transformers.LlamaForCausalLM(c), IDS


def gpt2():
    c = transformers.GPT2Config(
        n_embd=48,
        n_layer=2,
        n_head=4,
        vocab_size=99,
        n_positions=32,
        bos_token_id=1,
        eos_token_id=1,
    )
    return transformers.GPT2LMHeadModel(c), IDS


def bert():
    c = transformers.BertConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        vocab_size=99,
    )
    return transformers.BertForSequenceClassification(c), IDS


def vit():
    c = transformers.ViTConfig(
        hidden_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=32,
        patch_size=8,
    )
    return transformers.ViTForImageClassification(c), IMAGE


def swin():
    c = transformers.SwinConfig(
        embed_dim=24, depths=[2, 2], num_heads=[3, 6], image_size=32, patch_size=4, window_size=4
    )
    return transformers.SwinForImageClassification(c), IMAGE


def convnext():
    c = transformers.ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2)
    return transformers.ConvNextForImageClassification(c), IMAGE


MODELS = {
    "llama": llama,
    "gpt2": gpt2,
    "bert": bert,
    "vit": vit,
    "swin": swin,
    "convnext": convnext,
}
EXPECTED = {
    "llama": {
        "model.layers.0.self_attn:heads",
        "model.layers.0.self_attn:queries",
        "model.layers.1.mlp.gate_proj:out",
    },
    "gpt2": {"transformer.h.0.attn:heads", "transformer.h.1.mlp.c_fc:out"},
    "bert": {"bert.encoder.layer.0.attention:heads", "bert.encoder.layer.1.intermediate.dense:out"},
    "vit": {"vit.layers.0.attention:heads", "vit.layers.1.mlp.fc1:out"},
    "swin": {
        "swin.encoder.layers.0.blocks.1.attention:heads",
        "swin.encoder.layers.1.blocks.0.mlp.fc1:out",
    },
    "convnext": {"convnext.encoder.stages.0.layers.0.pwconv1:out"},
}


def make(name):
    torch.manual_seed(0)
    model, x = MODELS[name]()
    return Workload(model.eval(), (x,), name=name)


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_half_of_everything_goes_and_the_rest_runs(name, streams):
    w = make(name)
    graph = capture(w)
    technique = StructuredPruning(share=0.5, round_to=1, streams=streams)
    sites = technique.sites(w, graph)
    assert set(sites.ok) >= EXPECTED[name]
    change = technique.apply(w, sites)
    out, was = change.workload.call()[0], w.call()[0]
    assert out.shape == was.shape
    assert torch.isfinite(out).all()
    params = sum(p.numel() for p in change.workload.model.parameters())
    assert params == technique.preview(graph, sites).graph.params < graph.params
    if streams:
        assert params < 0.4 * graph.params


def test_grouped_heads_are_cut_with_their_queries():
    w = make("llama")
    deps = Dependencies(capture(w))
    group = deps["model.layers.0.self_attn:heads"]
    widths = {
        m.name.split(".")[-2]: int((group.units(m) == 0).sum())
        for m in group.members
        if m.name.endswith("proj.weight")
    }
    assert group.size == 4
    assert widths == {"q_proj": 16, "k_proj": 8, "v_proj": 8, "o_proj": 16}


def test_packed_query_key_value_is_one_group_of_heads():
    group = Dependencies(capture(make("gpt2")))["transformer.h.0.attn:heads"]
    packed = next(m for m in group.members if m.name.endswith("c_attn.weight"))
    assert group.units(packed).reshape(3, 4, 12).tolist() == [[[h] * 12 for h in range(4)]] * 3


def test_tied_embeddings_stay_tied():
    w = make("gpt2")
    technique = StructuredPruning(share=0.5, round_to=1, streams=True)
    model = technique.apply(w, technique.sites(w, capture(w))).workload.model
    assert model.lm_head.weight is model.transformer.wte.weight
    assert model.lm_head.weight.shape == (99, 24)


@pytest.mark.parametrize("name", ["llama", "gpt2", "bert", "vit", "swin"])
def test_removing_a_silent_head_changes_nothing(name):
    """Zero what the output projection reads from the first head: cutting that head is then
    exact.
    """
    w = make(name)
    deps = Dependencies(capture(w))
    site = next(g.site for g in deps.groups if g.heads and g.reason is None)
    group = deps[site]
    for m in group.members:
        if m.role == "in" or m.name.endswith("c_attn.weight") or m.role == "out":
            t = w.model.get_parameter(m.name)
            with torch.no_grad():
                at = torch.from_numpy((group.units(m) == 0).nonzero()[0])
                t.index_fill_(m.dim, at, 0.0)
    with torch.no_grad():
        for m in group.members:
            if m.role == "scale":
                at = torch.from_numpy((group.units(m) == 0).nonzero()[0])
                w.model.get_parameter(m.name).index_fill_(m.dim, at, 0.0)
    from paredown.technique import Sites

    technique = StructuredPruning(share=1 / group.size, round_to=1)
    change = technique.apply(w, Sites((site,)))
    assert change.decisions.values["kept"][site] == list(range(1, group.size))
    torch.testing.assert_close(change.workload.call()[0], w.call()[0], atol=1e-5, rtol=1e-5)


def test_a_layers_number_is_no_size():
    """Layer 4 of a decoder with 4 key heads: its ``layer_idx`` stays, whatever is cut."""
    c = transformers.LlamaConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=5, num_attention_heads=8,
        num_key_value_heads=4, vocab_size=50,
    )  # fmt: skip
    w = Workload(transformers.LlamaForCausalLM(c).eval(), (IDS,))
    technique = StructuredPruning(share=0.5, round_to=1)
    sites = technique.sites(w, capture(w))
    assert "model.layers.4.self_attn:heads" in sites.ok
    layers = technique.apply(w, sites).workload.model.model.layers
    assert [layer.self_attn.layer_idx for layer in layers] == [0, 1, 2, 3, 4]
