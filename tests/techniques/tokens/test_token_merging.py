"""Token merging: equal to a plain reference, exact on twins, counted, exported, refused."""

import pytest
import torch
import torch.nn.functional as F
from token_nets import small_vit
from torch import nn

from paredown import registry
from paredown.editing import replay
from paredown.errors import InputError, NotApplicable
from paredown.graph.capture import capture
from paredown.runtime.token_merging import match
from paredown.technique import Sites
from paredown.techniques.tokens.merging import TokenMerging
from paredown.workload import Workload


def merged(workload, technique, **where):
    sites = technique.sites(workload, capture(workload))
    return technique.apply(workload, sites.only(**where))


def test_forward_equals_the_paper_written_out_token_by_token():
    workload = small_vit()
    change = merged(workload, TokenMerging(per_block=9))
    x, model = workload.inputs[0], workload.model
    with torch.no_grad():
        got = torch.stack([_tome(model, image, 9) for image in x])
    torch.testing.assert_close(change.workload.call(), got, atol=2e-5, rtol=1e-4)
    assert not torch.allclose(workload.call(), got, atol=1e-2)


def _tome(model, image, r):
    """ToMe on one image as its section 3 tells it: lists of tokens, one pair at a time."""
    h = list(model._tokens(image[None])[0])
    size = [1.0] * len(h)
    for block in model.blocks:
        x = torch.stack(h)
        n, attn = len(h), block.attn
        q, k, v = (
            t.reshape(n, attn.num_heads, attn.head_dim).transpose(0, 1)
            for t in attn.qkv(block.norm1(x)).chunk(3, -1)
        )
        logits = q @ k.transpose(1, 2) / attn.head_dim**0.5 + torch.tensor(size).log()
        out = (logits.softmax(-1) @ v).transpose(0, 1).reshape(n, -1)
        x = x + attn.proj(out)
        keys = F.normalize(k.mean(0), dim=-1)
        like = (keys @ keys.T).tolist()
        sources, targets = range(2, n, 2), range(1, n, 2)
        pairs = sorted(((max((like[a][b], b) for b in targets), a) for a in sources), reverse=True)[
            :r
        ]
        total = {b: (x[b] * size[b], size[b]) for b in targets}
        for (_, b), a in pairs:
            total[b] = total[b][0] + x[a] * size[a], total[b][1] + size[a]
        gone = {a for _, a in pairs}
        left = [0, *(a for a in sources if a not in gone)]
        h = [x[a] for a in left] + [t / s for t, s in total.values()]
        size = [size[a] for a in left] + [s for _, s in total.values()]
        h = list(torch.stack(h) + block.mlp(block.norm2(torch.stack(h))))
    assert sum(size) == 65
    return model.head(model.norm(torch.stack(h)))[0]


def test_merging_twins_changes_nothing():
    """Equal patches merged with proportional attention give the original's logits."""
    workload = small_vit()
    workload.model.position.data.zero_()
    workload.inputs = (torch.randn(2, 3, 1, 1).expand(2, 3, 32, 32).contiguous(),)
    change = merged(workload, TokenMerging(share=0.9))
    torch.testing.assert_close(change.workload.call(), workload.call(), atol=1e-5, rtol=1e-5)


def test_tokens_and_macs_are_those_of_the_schedule():
    workload = small_vit(batch=1)
    c, hidden = 48, 96
    after = capture(merged(workload, TokenMerging(per_block=10)).workload)
    n, want = 65, 0
    for _ in range(3):
        want += n * 4 * c * c + 2 * n * n * c  # projections; attention
        sources = targets = (n - 1) // 2
        want += sources * targets * (c // 4) + targets * 10 * (c + 1)  # match; merge
        n -= 10
        want += n * 2 * c * hidden
    want += 64 * 48 * c + c * 10
    assert after.macs == want
    assert after.macs < 0.8 * capture(workload).macs


def test_class_tokens_stay_in_front_and_sizes_add_up():
    workload = small_vit(distilled=True)
    change = merged(workload, TokenMerging(per_block=12))
    assert change.decisions.values["prefix"] == 2
    model = change.workload.model
    step, seen = model.blocks[1].fewer, []
    step.method = _Noting(step.method, seen)
    change.workload.call()
    ((x, sizes),) = seen
    assert x.shape[1] == sizes.shape[1] == 66 - 24
    assert sizes.sum(1).tolist() == [66.0, 66.0]
    assert (sizes[:, :2] == 1).all()
    assert step.flow.sizes is None, "the last block empties the flow"


class _Noting:
    def __init__(self, method, seen):
        self._method, self._seen = method, seen

    def __getattr__(self, name):
        return getattr(self._method, name)

    def reduce(self, flow, *args):
        out = self._method.reduce(flow, *args)
        self._seen.append((out, flow.sizes))
        return out


def test_match_finds_the_most_alike():
    keys = torch.tensor([[[1.0, 0], [0, 1], [3, 0.1], [0, -1], [0.1, 1], [-1, 0]]])
    kept, source, target = match(keys, 1, odd=False)
    # Sources 0, 2, 4 of the row: (1,0), (3,0.1), (0.1,1); targets (0,1), (0,-1), (-1,0).
    assert (source.tolist(), target.tolist(), kept.tolist()) == ([[2]], [[0]], [[0, 1]])


def test_only_some_blocks_and_other_shares_there():
    workload = small_vit()
    change = merged(
        workload,
        TokenMerging(share=0.3),
        except_=["blocks.0"],
        overrides={"blocks.2": {"share": 0.5}},
    )
    assert [b["remove"] for b in change.decisions.values["blocks"]] == [0, 10, 16]
    assert set(change.touched) == {"blocks.1:tokens", "blocks.2:tokens"}


def test_replay_makes_the_same_network():
    workload = small_vit()
    change = merged(workload, TokenMerging())
    again = replay(workload.copy().model, change.edits)
    with torch.inference_mode():
        assert torch.equal(again(*workload.inputs), change.workload.call())


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2"])
def test_hugging_face_models(name):
    transformers = pytest.importorskip("transformers")
    config = getattr(transformers, f"{name}Config")(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8
    )
    torch.manual_seed(0)
    model = getattr(transformers, f"{name}ForImageClassification")(config).eval()
    workload = Workload(model, (torch.randn(2, 3, 32, 32),))
    change = merged(workload, TokenMerging(per_block=4))
    assert capture(change.workload).macs < capture(workload).macs
    assert change.decisions.values["prefix"] == (2 if name == "DeiT" else 1)
    assert change.workload.call().logits.shape == workload.call().logits.shape


def test_an_exported_graph_runs_without_paredown():
    ort = pytest.importorskip("onnxruntime")
    del ort
    from paredown.runtime import backend

    workload = small_vit(batch=1, depth=2)
    change = merged(workload, TokenMerging())
    lowered = backend("onnxruntime").lower(change.workload, threads=1)
    torch.testing.assert_close(
        lowered(*workload.inputs), change.workload.call(), atol=1e-5, rtol=1e-5
    )
    assert lowered.realised("token-merging", change.touched).lost == {}


class Maps(nn.Module):
    """Turns its tokens back into a map: needs all of them."""

    def __init__(self):
        super().__init__()
        self.vit = small_vit().model
        self.vit.norm, self.vit.head = nn.Identity(), nn.Identity()

    def forward(self, x):
        h = self.vit.blocks(self.vit._tokens(x))
        return h[:, 1:].transpose(1, 2).reshape(x.shape[0], -1, 8, 8).mean((2, 3))


class PerToken(Maps):
    def forward(self, x):
        return self.vit.blocks(self.vit._tokens(x))


@pytest.mark.parametrize(
    ("model", "why"), [(Maps, "needs every token"), (PerToken, "one entry per token")]
)
def test_networks_that_need_their_tokens_are_refused(model, why):
    workload = Workload(model().eval(), (torch.randn(1, 3, 32, 32),))
    sites = TokenMerging().sites(workload, capture(workload))
    assert not sites.ok
    assert all(why in r for r in sites.refused.values())
    with pytest.raises(NotApplicable, match=why):
        TokenMerging().apply(workload, sites)


def test_refusals_name_the_reason():
    workload = small_vit()
    once = merged(workload, TokenMerging()).workload
    again = TokenMerging().sites(once, capture(once))
    assert not again.ok
    none = TokenMerging(share=0.001).sites(workload, capture(workload))
    assert "rounds to none" in next(iter(none.refused.values()))
    for settings in ({"share": 1.0}, {"per_block": -1}):
        with pytest.raises(InputError):
            TokenMerging(**settings)
    with pytest.raises(NotApplicable):
        TokenMerging().apply(workload, Sites(()))


def test_it_composes_with_what_changes_the_layers_inside():
    """Heads cut before, layers factored and packed after: the names inside the blocks stand."""
    workload = small_vit()
    for name, settings in (
        ("structured-pruning", {"share": 0.25}),
        ("token-merging", {}),
        ("low-rank", {"share": 0.5}),
        ("weight-only", {}),
    ):
        technique = registry.make(name, settings)
        sites = technique.sites(workload, capture(workload))
        assert sites.ok, name
        workload = technique.apply(workload, sites).workload
    assert workload.call().isfinite().all()
    assert workload.call().std() > 0
