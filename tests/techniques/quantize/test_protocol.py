"""What every numeric technique promises on every family: preview, replay, an untouched input."""

import dataclasses
import json

import pytest
import torch
from quant_nets import NETS, error, first

from paredown import editing
from paredown.graph.capture import capture
from paredown.techniques.quantize.bf16 import BF16
from paredown.techniques.quantize.dynamic_int8 import DynamicInt8
from paredown.techniques.quantize.fold_norm import FoldNorm
from paredown.techniques.quantize.llm_int8 import LLMInt8
from paredown.techniques.quantize.nf4 import NF4
from paredown.techniques.quantize.static_int8 import StaticInt8
from paredown.techniques.quantize.weight_only import WeightOnly

# technique, and the largest relative output error that it may cause on these random networks
TECHNIQUES = {
    "fold-norm": (FoldNorm(), 1e-5),
    "bf16": (BF16(), 0.02),
    "static-int8": (StaticInt8(), 0.05),
    "dynamic-int8": (DynamicInt8(), 0.05),
    "llm-int8": (LLMInt8(columns=4), 0.05),
    "nf4": (NF4(), 0.25),
    "weight-only 8": (WeightOnly(), 0.02),
    "weight-only 4": (WeightOnly(bits=4, group_size=32, clip=True, embeddings=True), 0.2),
}
# Only the convolution net has batch norms; its one linear has no 32 columns to group.
PAIRS = [
    (net, name)
    for net in NETS
    for name in TECHNIQUES
    if name != ("weight-only 4" if net == "mobile" else "fold-norm")
]


def calls(graph):
    """What a graph does, by operator, module and shapes."""
    return [
        (n.op, n.module, [(graph.tensors[t].shape, graph.tensors[t].dtype) for t in n.inputs])
        for n in graph.nodes
    ]


@pytest.mark.parametrize(("net", "name"), PAIRS)
def test_apply_preview_replay(net, name):
    workload = NETS[net]()
    technique, bound = TECHNIQUES[name]
    before = first(workload.call())
    names = list(workload.model.state_dict())
    graph = capture(workload)
    sites = technique.sites(workload, graph)
    assert sites.ok
    assert all(reason for reason in sites.refused.values())

    change = technique.apply(workload, sites)
    after = first(change.workload.call())
    assert after.dtype == before.dtype
    assert error(before, after) < bound
    assert technique.name == "fold-norm" or not torch.equal(after, before)

    # the input workload is as it was
    assert torch.equal(first(workload.call()), before)
    assert list(workload.model.state_dict()) == names

    # what was priced is what came out
    previewed = technique.preview(graph, sites).graph
    assert calls(previewed) == calls(capture(change.workload))

    # deterministic
    again = technique.apply(workload, sites)
    assert torch.equal(first(again.workload.call()), after)

    # records and tensors rebuild the model, and both survive JSON
    edits = [json.loads(json.dumps(dataclasses.asdict(e))) for e in change.edits]
    json.dumps(change.decisions.values)
    model = editing.replay(workload.copy().model, [editing.Edit(**e) for e in edits])
    model.load_state_dict(change.workload.model.state_dict(), assign=True)
    rebuilt = dataclasses.replace(workload, model=model.eval())
    assert torch.equal(first(rebuilt.call()), after)


@pytest.mark.parametrize("net", ["mobile", "vit"])
@pytest.mark.parametrize("numeric", ["static-int8", "dynamic-int8", "weight-only 8"])
def test_int8_on_top_of_fold_and_bf16(net, numeric):
    workload = NETS[net]()
    before = first(workload.call())
    now = workload
    for name in ("fold-norm", "bf16", numeric):
        technique = TECHNIQUES[name][0]
        sites = technique.sites(now, capture(now))
        if sites.ok:
            now = technique.apply(now, sites).workload
    after = first(now.call())
    assert after.dtype == torch.float32
    assert error(before, after) < 0.06
    held = {t.dtype for t in now.model.state_dict().values()}
    assert torch.bfloat16 in held
    assert held & {torch.int8, torch.uint8}


def test_every_operator_of_ours_is_priced():
    """A form's operators carry work and bytes: an integer layer must not look free."""
    workload = NETS["llama"]()
    for name in ("static-int8", "dynamic-int8", "weight-only 4"):
        technique = TECHNIQUES[name][0]
        graph = capture(workload)
        after = technique.preview(graph, technique.sites(workload, graph)).graph
        ours = [n for n in after.nodes if n.op.startswith("paredown::")]
        assert ours
        assert not after.unpriced
        assert all(n.priced and n.work.get("elementwise") and n.bytes_read for n in ours)
        assert after.macs == graph.macs
