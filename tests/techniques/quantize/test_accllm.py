"""Two of four in two bits, to the bit; a cache that never grows, and equals a full one before."""

import pytest
import torch

from paredown import runtime
from paredown.errors import InputError
from paredown.graph.capture import capture
from paredown.runs import Generate
from paredown.runtime import bounded_cache as bc
from paredown.runtime import forms_two_of_four as form
from paredown.techniques.quantize import accllm
from paredown.techniques.quantize.accllm import AccLLM
from paredown.techniques.sparsify import pruners
from paredown.testing import build
from paredown.workload import Workload

transformers = pytest.importorskip("transformers")


def llama():
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=64,
    )  # fmt: skip
    return transformers.LlamaForCausalLM(config).eval()


@pytest.mark.parametrize("group", [32, 64])
def test_codes_places_and_grids_stand_for_the_weight(group):
    torch.manual_seed(group)
    weight = torch.randn(5, 64)
    inputs = torch.randn(300, 64) @ torch.randn(64, 64)
    moment = inputs.T @ inputs / 300
    codes, places, low, step = accllm.two_of_four(weight, moment, group)
    packed = form.pack_pairs(codes)
    assert packed.shape == (5, 8)
    got = form.dequantize_two_of_four(packed, form.pack_pairs(places), low, step, torch.float32)
    want = torch.zeros(5, 64)
    for r in range(5):
        for j in range(32):
            column = 4 * (j // 2) + int(places[r, j])
            g = column // group
            want[r, column] = float(low[r, g]) + int(codes[r, j]) * float(step[r, g])
    assert torch.equal(got, want)
    assert (places.reshape(5, -1, 2).diff(dim=-1) != 0).all(), "two places of every four"
    pruned = pruners.sparsegpt(weight, moment, 0.5, (2, 4))
    plain = pruners.magnitude(weight, 0.5, (2, 4))
    kept = plain != 0
    for g in range(0, 64, group):
        a, b = accllm.grid(plain[:, g : g + group].double(), kept[:, g : g + group])
        points = a.double()[:, None] + torch.arange(4) * b.double()[:, None]
        at = (plain[:, g : g + group, None].double() - points[:, None]).abs().argmin(-1)
        plain[:, g : g + group] = (points.gather(1, at) * kept[:, g : g + group]).float()
    errors = [pruners.error(weight, w, moment) for w in (pruned, got, plain)]
    assert errors[0] < errors[1] < errors[2], "columns to the right make up for what is lost"


def test_the_operator_has_a_fake_and_a_price():
    u8 = torch.randint(0, 256, (6, 4), dtype=torch.uint8)
    places = form.pack_pairs(torch.tensor([0, 2]).repeat(6, 8))
    half = torch.rand(6, 2).half()
    args = (u8, places, half, half, torch.float32)
    tests = ("test_schema", "test_faketensor")
    torch.library.opcheck(torch.ops.paredown.dequantize_two_of_four.default, args, test_utils=tests)
    workload = build("vit")
    technique = AccLLM(group_size=48)
    graph = capture(workload)
    after = technique.preview(graph, technique.sites(workload, graph)).graph
    ours = [n for n in after.nodes if n.op == "paredown::dequantize_two_of_four"]
    assert ours
    assert all(n.priced and n.work["elementwise"] for n in ours)


@pytest.mark.parametrize(("sinks", "window"), [(0, 1), (2, 5), (4, 3)])
def test_the_ring_keeps_the_first_and_the_last_however_they_come(sinks, window):
    torch.manual_seed(0)
    x = torch.randn(2, 3, 20, 4)
    for parts in ([1] * 20, [20], [7, 1, 1, 6, 5]):
        layer = bc.BoundedLayer(sinks, window, 0)
        start = 0
        for n in parts:
            kept = layer.held(start)
            keys, values = layer.update(x[:, :, start : start + n], -x[:, :, start : start + n])
            want = x[:, :, [*kept, *range(start, start + n)]]
            assert torch.equal(keys, want)
            assert torch.equal(values, -want)
            start += n
            assert layer.get_seq_length() == start
            length, first = layer.get_mask_sizes(1)
            assert length - 1 == min(start, len(layer.held(start))) <= sinks + window
            assert first + length - 1 == start
    assert layer.nbytes == 2 * 4 * 2 * 3 * (sinks + window) * 4


def test_four_bits_of_a_cache_are_within_half_a_step():
    x = torch.randn(1, 2, 9, 8)
    layer = bc.BoundedLayer(4, 16, 4)
    layer.update(x, x)
    keys, _ = layer.update(x[:, :, :1], x[:, :, :1])
    span = x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)
    assert ((keys[:, :, :9] - x).abs() <= span / 30 + 0.01).all()
    assert not torch.equal(keys[:, :, :9], x)
    assert layer.nbytes == 2 * 2 * 20 * (8 // 2 + 4)


def test_a_decoder_generates_as_before_while_all_fits_and_holds_less_after(tmp_path):
    model = llama()
    ids = torch.randint(0, 64, (2, 6))
    workload = Workload(
        model, kwargs={"input_ids": ids}, loop=Generate(new_tokens=8), calibration=None
    )
    want = workload.call()
    wide, narrow = (AccLLM(group_size=32, window=w, sinks=1, cache_bits=0) for w in (64, 2))
    sites = wide.sites(workload, capture(workload))
    assert accllm.CACHE in sites.ok
    alone = sites.only([accllm.CACHE])
    assert torch.equal(wide.apply(workload, alone).workload.call(), want)
    cut = narrow.apply(workload, alone).workload
    logits = [w.judged()["logits"] for w in (workload, cut)]
    assert torch.allclose(logits[0][:, 0], logits[1][:, 0], atol=1e-5), "a prompt is read in full"
    assert not torch.allclose(logits[0][:, 3], logits[1][:, 3], atol=1e-5)
    assert torch.equal(workload.call(), want), "the caller's model is as it was"
    change = AccLLM(group_size=32, window=4).apply(workload, sites)
    run = runtime.backend("eager").lower(change.workload.copy(), threads=1)
    assert torch.equal(run(**workload.kwargs), change.workload.call())
    held = [m for m in change.workload.model.modules() if isinstance(m, form.TwoOfFourLinear)]
    for m in held:
        bits = 8 * (m.weight.nbytes + m.places.nbytes + m.low.nbytes + m.step.nbytes)
        assert bits == m.in_features * m.out_features * (2 + 32 / 32)
    lost = run.realised("accllm", [s for s in sites.ok if s != accllm.CACHE]).lost
    assert not lost, lost


def test_it_says_where_it_cannot():
    workload = build("decoder")
    found = AccLLM().sites(workload, capture(workload))
    assert "does not divide" in found.refused["layers.0.attn.q:weight"]
    assert accllm.CACHE not in (*found.ok, *found.refused), "no generation, no cache"
    assert "no Hugging Face model" in bc.why_not(workload.model, 8, 0, 4)
    for wrong in ({"group_size": 12}, {"window": 0}, {"sinks": -1}, {"cache_bits": 3}):
        with pytest.raises(InputError):
            AccLLM(**wrong)
    with pytest.raises(InputError, match="divide"):
        form.TwoOfFourLinear(20, 4, 8)
