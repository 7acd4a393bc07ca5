"""Language models by formula: bytes and FLOPs per token as printed, files read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from paredown.cost.serving import load, names, read
from paredown.cost.serving.exchange import (
    Exchange,
    network_copies,
    nodes_reached,
    speculative_gain,
)
from paredown.cost.serving.model import CATALOGUE, Experts
from paredown.errors import InputError, NotApplicable, UnknownName

V3 = {
    "hidden_size": 7168, "num_hidden_layers": 61, "num_attention_heads": 128, "vocab_size": 129280,
    "intermediate_size": 18432, "kv_lora_rank": 512, "q_lora_rank": 1536, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128, "v_head_dim": 128, "n_routed_experts": 256, "num_experts_per_tok": 8,
    "moe_intermediate_size": 2048, "n_shared_experts": 1, "first_k_dense_replace": 3,
    "n_group": 8, "topk_group": 4, "num_key_value_heads": 128, "head_dim": 128,
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "printed"),
    [("deepseek-v3", 70_272), ("qwen2.5-72b", 327_680), ("llama-3.1-405b", 516_096)],
)
def test_kv_bytes_are_those_of_table_1(name: str, printed: int) -> None:
    assert load(name).kv_bytes() == printed


@pytest.mark.parametrize(
    ("name", "total", "active"),
    [("deepseek-v3", 671e9, 37e9), ("deepseek-v2", 236e9, 21e9), ("llama-3.1-405b", 405e9, 405e9),
     ("qwen2.5-72b", 72.7e9, 72.7e9), ("llama-2-7b", 6.74e9, 6.74e9), ("lm-530b", 530e9, 530e9)],
)  # fmt: skip
def test_weights_are_the_published_ones(name: str, total: float, active: float) -> None:
    model = load(name)
    assert model.parameters == pytest.approx(total, rel=3e-3)
    assert model.active_parameters == pytest.approx(active, rel=0.025)


def test_training_flops_are_those_of_table_2_but_for_qwen() -> None:
    at = {n: load(n).training_flops(4096) / 1e9 for n in names()}
    assert at["deepseek-v3"] == pytest.approx(250, rel=3e-3)
    assert at["deepseek-v2"] == pytest.approx(155, rel=3e-3)
    assert at["llama-3.1-405b"] == pytest.approx(2448, rel=0.011)
    # 394 is printed, which is below six times the weights of the layers alone.
    qwen = load("qwen2.5-72b")
    body = qwen.active_parameters - qwen.vocabulary * qwen.hidden
    assert at["qwen2.5-72b"] > 6 * body / 1e9 > 394


def test_decoding_from_latents_costs_more_products_and_fewer_bytes() -> None:
    model = load("deepseek-v3")
    assert model.attention_macs(4096, absorbed=True) > model.attention_macs(4096)
    assert model.cached_per_layer < model.heads * (model.query_dim + model.value_dim) / 50
    plain = load("llama-2-7b")
    assert plain.attention_macs(10, absorbed=True) == plain.attention_macs(10)
    assert plain.decode_macs(10) == plain.active_parameters + plain.attention_macs(10)


def test_the_exchange_bounds_a_token_as_printed() -> None:
    model, exchange = load("deepseek-v3"), Exchange()
    assert exchange.seconds(model, 50e9, hidden=7000) == pytest.approx(120.96e-6, rel=1e-9)
    assert exchange.token_seconds(model, 50e9, hidden=7000) == pytest.approx(14.76e-3, rel=1e-3)
    assert exchange.seconds(model, 900e9, hidden=7000) == pytest.approx(6.72e-6, rel=1e-3)
    assert exchange.token_seconds(model, 50e9) == pytest.approx(15.11e-3, rel=1e-3)


def test_copies_over_the_network() -> None:
    experts = load("deepseek-v3").experts
    assert experts is not None
    copies = network_copies(experts)
    assert copies["per expert"] == 8
    assert copies["at most"] == 4 < copies["per node"] < 8
    # One expert reaches one node; as many experts as there are reach all.
    assert nodes_reached(Experts(routed=8, active=1, width=1, groups=4)) == pytest.approx(1)
    assert nodes_reached(Experts(routed=8, active=8, width=1, groups=4)) == 4
    # Two of four in two groups: the second lies beside the first with chance 1/3.
    assert nodes_reached(Experts(routed=4, active=2, width=1, groups=2)) == pytest.approx(5 / 3)


def test_a_second_token_gains_its_acceptance() -> None:
    assert speculative_gain(0.8) == 1.8
    assert speculative_gain(0.8, extra=0.2) == pytest.approx(1.5)
    with pytest.raises(InputError, match="acceptance"):
        speculative_gain(1.2)


def test_a_configuration_reads_as_the_catalogue() -> None:
    ours = load("deepseek-v3").model_dump(exclude={"name", "title", "sources"})
    assert read(V3, "v3").model_dump(exclude={"name", "title", "sources"}) == ours


def test_files_are_read_and_refused_by_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(V3))
    assert load(f"hf:{tmp_path}").parameters == load("deepseek-v3").parameters
    source = (CATALOGUE / "llama-2-7b.toml").read_text()
    for old, new, why in (
        ("layers = 32", "layers = 0", "layers: input should be greater than 0"),
        ("kv_heads = 32", "kv_heads = 5", "do not share 5 kv heads"),
        ("layers = 32", "layer = 32", "layers: field required"),
        ("layers = 32", "layers = ", "line 4"),
    ):
        path = tmp_path / "bad.toml"
        path.write_text(source.replace(old, new, 1))
        with pytest.raises(InputError, match=why):
            load(path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InputError, match="lacks hidden_size, num_hidden_layers"):
        load(tmp_path)
    with pytest.raises(UnknownName, match="llama-3-70b"):
        load("llama-3-71b")
    with pytest.raises(NotApplicable, match="no experts"):
        Exchange().nbytes(load("llama-2-7b"))


@pytest.mark.parametrize("name", names())
def test_every_model_names_its_source(name: str) -> None:
    model = load(name)
    assert model.name == name
    assert len(model.sources["shape"]) > 20
