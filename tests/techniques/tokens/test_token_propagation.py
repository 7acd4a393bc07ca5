"""Token propagation: the catalogue's invariants, the paper written out, its published counts."""

import pytest
import torch
from token_nets import small_vit

from paredown import zoo
from paredown.editing import replay
from paredown.errors import InputError
from paredown.graph.capture import capture, fake_workload
from paredown.runtime.token_propagation import beside, degrees, strongest
from paredown.technique import Decisions
from paredown.techniques.tokens.merging import TokenMerging
from paredown.techniques.tokens.propagation import TokenPropagation
from paredown.workload import Workload


def given_up(workload, **settings):
    technique = TokenPropagation(**settings)
    return technique.apply(workload, technique.sites(workload, capture(workload)))


@pytest.mark.parametrize(
    "settings",
    [
        {"alpha": 0.3},
        {"alpha": 0.3, "rescue": False, "kept": 0.7},
        {"alpha": 0.2, "graph": "semantic", "neighbours": 3},
        {"alpha": 0.2, "graph": "mixed", "neighbours": 2, "rescue": False},
        {"alpha": 0.0},
    ],
)
def test_forward_equals_the_paper_written_out(settings):
    workload = small_vit(size=24)
    change = given_up(workload, per_block=7, **settings)
    technique = TokenPropagation(per_block=7, **settings)
    with torch.no_grad():
        want = torch.stack([_gtp(workload.model, x, technique) for x in workload.inputs[0]])
    torch.testing.assert_close(change.workload.call(), want, atol=3e-5, rtol=1e-4)


def _gtp(model, image, t, side=6):
    """GTP on one image with the whole graph in hand, patches as entries of a dictionary."""
    h = model._tokens(image[None])[0]
    n = side * side
    at = {i: divmod(i, side) for i in range(n)}
    a = torch.zeros(n, n)
    if t.graph != "semantic":
        for i in at:
            for j in at:
                near = max(abs(at[i][0] - at[j][0]), abs(at[i][1] - at[j][1]))
                a[i, j] = float(near == 1)
    if t.graph != "spatial":
        cosine = torch.cosine_similarity(h[1:, None], h[None, 1:], dim=-1)
        for i in at:
            best = sorted((j for j in at if j != i), key=lambda j: -float(cosine[i, j]))
            a[i, best[: t.neighbours]] = 1.0
    d = a.sum(1).rsqrt()
    a = d[:, None] * a * d[None, :]
    x, patches, size = h, list(range(n)), torch.ones(n + 1)
    for block in model.blocks:
        m, attn = len(x), block.attn
        q, k, v = (
            u.reshape(m, attn.num_heads, attn.head_dim).transpose(0, 1)
            for u in attn.qkv(block.norm1(x)).chunk(3, -1)
        )
        w = (q @ k.transpose(1, 2) / attn.head_dim**0.5 + size.log()).softmax(-1)
        if t.kept < 1:
            for head in w:
                order = head.flatten().argsort()
                head.view(-1)[order[: m * m - -int(-t.kept * m * m // 1)]] = 0
        x = x + attn.proj((w @ v).transpose(0, 1).reshape(m, -1))
        score = w.diagonal(dim1=1, dim2=2).amax(0) * w.sum(1).amax(0)
        gone = sorted(range(1, m), key=lambda i: float(score[i]))[: t.per_block]
        stay = [i for i in range(1, m) if i not in gone]
        new, new_size = x.clone(), size.clone()
        for i in gone:
            weights = {j: float(a[patches[j - 1], patches[i - 1]]) for j in stay}
            if t.rescue and not any(weights.values()):
                here = at[patches[i - 1]]
                there = {j: at[patches[j - 1]] for j in stay}
                far = {j: (r - here[0]) ** 2 + (c - here[1]) ** 2 for j, (r, c) in there.items()}
                weights = {min(far, key=far.get): 1.0}
            for j, weight in weights.items():
                new[j] += t.alpha * weight * x[i]
                new_size[j] += t.alpha * weight * size[i]
        patches = [patches[j - 1] for j in stay]
        x, size = new[[0, *stay]], new_size[[0, *stay]]
        x = x + block.mlp(block.norm2(x))
    return model.head(model.norm(x))[0]


def test_nothing_given_up_and_nothing_thinned_is_the_original_bit_for_bit():
    workload = small_vit()
    technique = TokenPropagation()
    sites = technique.sites(workload, capture(workload))
    values = technique.decide(workload, sites).values
    blocks = [{**b, "remove": 0} for b in values["blocks"]]
    still = technique.rewrite(workload, sites, Decisions({**values, "blocks": blocks}))
    assert torch.equal(still.workload.call(), workload.call())


def test_alpha_zero_is_pruning_and_removes_the_same_patches_in_the_first_block():
    workload = small_vit(depth=1)
    pruned = given_up(workload, per_block=20, alpha=0.0).workload
    sent = given_up(workload, per_block=20, alpha=1e-7).workload
    torch.testing.assert_close(pruned.call(), sent.call(), atol=1e-5, rtol=1e-5)
    x = workload.inputs[0]
    with torch.no_grad():
        model, block = workload.model, workload.model.blocks[0]
        h = model._tokens(x)
        h = h + block.attn(block.norm1(h))
        h = h + block.mlp(block.norm2(h))
        want = model.head(model.norm(h)[:, 0])
    # The class token of the only block has seen every patch: pruning after its attention is free.
    torch.testing.assert_close(pruned.call(), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("variant", "fewer", "giga"),
    [("vit-b", 0.253, 13.12), pytest.param("vit-s", 0.256, None, marks=pytest.mark.slow)],
)
def test_published_savings_of_eight_patches_a_block(variant, fewer, giga):
    """DeiT-B and DeiT-S at P = 8: 25.3 % and 25.6 % fewer operations."""
    with torch.device("meta"):
        model = zoo.create(variant).eval()
    workload = fake_workload(Workload(model, (torch.empty(1, 3, 224, 224, device="meta"),)))
    graph = capture(workload)
    technique = TokenPropagation(per_block=8)
    sites = technique.sites(workload, graph)
    after = technique.preview(graph, sites).graph
    assert 1 - after.macs / graph.macs == pytest.approx(fewer, abs=0.002)
    if giga:
        assert after.macs / 1e9 == pytest.approx(giga, rel=0.003)


def test_tokens_fall_by_the_same_number_in_every_block():
    workload = small_vit(batch=1)
    graph = capture(given_up(workload, per_block=11).workload)
    ups = [n for n in graph.nodes if n.module.endswith("mlp.fc1") and n.op == "aten::addmm"]
    assert [graph.tensors[n.outputs[0]].shape[0] for n in ups] == [54, 43, 32]


def test_thinning_keeps_the_stated_share_of_each_map():
    torch.manual_seed(0)
    weights = torch.rand(2, 3, 9, 9).softmax(-1)
    thin = strongest(weights, 0.5)
    assert ((thin > 0).flatten(-2).sum(-1) == 41).all()
    assert ((thin == weights) | (thin == 0)).all()
    assert weights[thin == 0].max() <= weights[thin > 0].max()
    only = given_up(small_vit(), share=0.0, kept=0.5)
    assert not torch.allclose(only.workload.call(), small_vit().call(), atol=1e-4)


def test_the_grid_has_eight_neighbours_inside():
    places = torch.arange(12)[None]
    a = beside(places, places, (3, 4))[0]
    assert (a == a.T).all()
    assert not a.diagonal().any()
    assert a.sum(1).tolist() == degrees(places, (3, 4))[0].tolist()
    assert a.sum(1).tolist() == [3, 5, 5, 3, 5, 8, 8, 5, 3, 5, 5, 3]


def test_random_selection_is_seeded_and_another_seed_is_another():
    workload = small_vit()
    one, same, other = (
        given_up(workload, select="random", seed=s).workload.call() for s in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.allclose(one, other, atol=1e-4)


@pytest.mark.parametrize(
    "settings",
    [{"graph": "mixed", "kept": 0.8}, pytest.param({}, marks=pytest.mark.slow)],
)
def test_an_exported_graph_gives_the_same(settings):
    pytest.importorskip("onnxruntime")
    from paredown.runtime import backend

    change = given_up(small_vit(batch=2, depth=2), **settings)
    lowered = backend("onnxruntime").lower(change.workload, threads=1)
    want = change.workload.call()
    torch.testing.assert_close(lowered(*change.workload.inputs), want, atol=1e-5, rtol=1e-5)


def test_replay_and_conflict_with_merging():
    workload = small_vit()
    change = given_up(workload)
    again = replay(workload.copy().model, change.edits)
    with torch.inference_mode():
        assert torch.equal(again(*workload.inputs), change.workload.call())
    after = TokenMerging().sites(change.workload, capture(change.workload))
    assert not after.ok
    assert set(after.refused.values()) == {"its blocks give tokens up already"}


def test_another_image_size_and_bad_settings_are_refused():
    workload = small_vit()
    change = given_up(workload)
    model = change.workload.model
    with pytest.raises(InputError, match="tokens came where"), torch.no_grad():
        model.blocks(torch.randn(1, 50, 48))
    for wrong in ({"alpha": -1.0}, {"graph": "x"}, {"kept": 0.0}, {"select": "x"}):
        with pytest.raises(InputError):
            TokenPropagation(**wrong)
    sites = TokenPropagation().sites(workload, capture(workload))
    sites = sites.only(overrides={"blocks.1": {"alpha": 0.5}})
    with pytest.raises(InputError, match="alpha is one for the network"):
        TokenPropagation().apply(workload, sites)
