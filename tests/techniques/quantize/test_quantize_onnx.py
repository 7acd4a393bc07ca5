"""Numeric techniques on ONNX files: the same decisions as on the torch model they came from."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from paredown import artefact, recipe, runtime
from paredown.errors import NotApplicable, RecipeError
from paredown.graph.capture import capture
from paredown.registry import BUILT_IN, technique
from paredown.runtime.gate import gate
from paredown.runtime.onnx_model import OnnxModule
from paredown.runtime.onnx_workload import onnx_workload
from paredown.search import shared
from paredown.techniques.quantize.sensitivity import sensitivity
from paredown.workload import Workload

sys.path.insert(0, str(Path(__file__).parents[2] / "runtime"))
from onnx_nets import exported

NUMERIC = {"bf16", "dynamic-int8", "static-int8", "weight-only"}
RECIPES = ("static-int8", "weight-only", "weight-only:bits=4,group_size=32", "dynamic-int8",
           "bf16", "bf16; static-int8")  # fmt: skip


def data(name: str, count: int) -> list[torch.Tensor]:
    g = torch.Generator().manual_seed(1)
    if name == "cnn":
        return [torch.randn(1, 3, 32, 32, generator=g) for _ in range(count)]
    return [torch.randint(0, 50, (2, 12), generator=g) for _ in range(count)]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Workload, Workload]]:
    """Each network as torch module and as the ONNX file made of it, with equal data."""
    found: dict[str, tuple[Workload, Workload]] = {}
    for name in ("cnn", "transformer"):
        path, model, inputs = exported(name, tmp_path_factory.mktemp(name))
        calibration = data(name, 6)
        torch_side = Workload(model, inputs, name=name, calibration=calibration)
        found[name] = torch_side, onnx_workload(path, inputs, calibration=calibration)
    return found


def forms(model: nn.Module) -> list[Any]:
    """The packed layers of a model in the order they run."""
    return [m for m in model.modules() if hasattr(m, "scale")]


@pytest.mark.parametrize("name", ["cnn", "transformer"])
# An ONNX file has no norm that could be smoothed.
@pytest.mark.parametrize(
    "text",
    [
        "static-int8:smooth=false",
        "static-int8:smooth=false,percentile=99.9",
        "dynamic-int8:smooth=false",
    ],
)
def test_the_same_integers_as_on_the_torch_model(
    pairs: dict[str, tuple[Workload, Workload]], name: str, text: str
) -> None:
    ours, theirs = (
        recipe.run(recipe.parse_inline(text), w).workload for w in reversed(pairs[name])
    )
    got, want = forms(ours.model), forms(theirs.model)
    assert len(got) == len(want) > 0
    by_shape = {tuple(m.weight.shape): m for m in want}
    for m in got:
        same = by_shape[tuple(m.weight.shape)]
        assert torch.equal(m.weight, same.weight)
        torch.testing.assert_close(m.scale, same.scale)
        if hasattr(m, "in_scale"):
            # Two runtimes computed the values that the ranges are of.
            torch.testing.assert_close(m.in_scale, same.in_scale, rtol=1e-3, atol=1e-6)
    torch.testing.assert_close(ours.call(), theirs.call(), rtol=0.05, atol=5e-3)


@pytest.mark.parametrize("name", ["cnn", "transformer"])
@pytest.mark.parametrize("text", RECIPES)
@pytest.mark.parametrize("backend", ["onnxruntime", "openvino"])
def test_lowered_as_asked_saved_and_loaded(
    pairs: dict[str, tuple[Workload, Workload]],
    name: str,
    text: str,
    backend: str,
    tmp_path: Path,
) -> None:
    original = pairs[name][1]
    if name == "cnn" and "bits=4" in text:
        sites = technique("weight-only")(bits=4, group_size=32).sites(original, capture(original))
        assert any("convolution" in why for why in sites.refused.values())
        return
    done = recipe.run(recipe.parse_inline(text), original)
    on = runtime.backend(backend)
    reasons = on.supports(done.workload, None)
    if backend == "onnxruntime" and "bf16" in text:
        assert "bfloat16" in reasons[0]
        return
    assert not reasons
    executable = on.lower(done.workload, threads=1)
    gate(executable, done.workload).demand()
    change = done.changes[-1]
    realised = executable.realised(change.technique, change.touched, done.workload.aliases)
    lost = {s: why for s, why in realised.lost.items() if "bytes on disk alone" not in why}
    if backend == "onnxruntime" and name == "cnn":
        # ReLU between them, ONNX Runtime computes a convolution in integers only where a
        # quantizer follows it.
        lost = {s: why for s, why in lost.items() if "not quantized again" not in why}
    assert not lost
    artefact.save(tmp_path / "a", workload=done.workload, executable=executable,
                  recipe=done.recipe, changes=done.changes)  # fmt: skip
    loaded = artefact.load(tmp_path / "a")
    got = loaded(*original.inputs)
    torch.testing.assert_close(got, executable(*original.inputs))
    want = original.call()
    assert (got - want).norm() < 0.2 * want.norm()


@pytest.mark.parametrize("text", ["static-int8", "weight-only", "bf16"])
def test_fewer_bytes_on_disk(
    pairs: dict[str, tuple[Workload, Workload]], text: str, tmp_path: Path
) -> None:
    original: Any = pairs["cnn"][1]
    done = recipe.run(recipe.parse_inline(text), original)
    executable = runtime.backend("openvino").lower(done.workload, threads=1)
    executable.save(tmp_path)
    weights = sum(p.numel() for p in original.model.parameters())
    saved = (tmp_path / "model.bin").stat().st_size
    assert saved < weights * (2.3 if text == "bf16" else 1.5)


def test_the_file_and_the_workload_stay_as_they_were(
    pairs: dict[str, tuple[Workload, Workload]],
) -> None:
    original = pairs["cnn"][1]
    before, data_before = original.call(), original.model.path.read_bytes()  # type: ignore[union-attr]
    done = recipe.run(recipe.parse_inline("static-int8"), original)
    again = recipe.run(recipe.parse_inline("static-int8"), original)
    assert torch.equal(done.workload.call(), again.workload.call())
    assert not original.model.changed
    assert torch.equal(original.call(), before)
    assert original.model.path.read_bytes() == data_before  # type: ignore[union-attr]


def test_preview_equals_the_graph_after_it(pairs: dict[str, tuple[Workload, Workload]]) -> None:
    for name, (_, original) in pairs.items():
        graph = capture(original)
        for key in sorted(NUMERIC):
            made = technique(key)()
            sites = made.sites(original, graph)
            seen = made.preview(graph, made.sites(graph.source, graph)).graph
            real = capture(made.apply(original, sites).workload)
            assert [n.op for n in seen.nodes] == [n.op for n in real.nodes], (name, key)
            assert (
                (seen.macs, seen.params) == (real.macs, real.params) == (graph.macs, graph.params)
            )
            assert not real.unpriced


def test_opted_out_layers_and_replay(
    pairs: dict[str, tuple[Workload, Workload]], tmp_path: Path
) -> None:
    original: Any = pairs["cnn"][1]
    head = list(original.model.layers())[-1]
    done = recipe.run(recipe.parse_inline(f"static-int8!{head}"), original)
    kinds = {p: type(m).__name__ for p, m in done.workload.model.layers().items()}  # type: ignore[operator]
    assert kinds.pop(head) == "OnnxLinear"
    assert set(kinds.values()) == {"QuantConv"}
    shared.keep(tmp_path / "kept", done.workload, done.changes)
    again, _ = shared.restore(tmp_path / "kept", original)
    assert torch.equal(again.call(), done.workload.call())
    with pytest.raises(RecipeError, match="no site matches"):
        recipe.run(recipe.parse_inline("static-int8@nowhere"), original)


def test_sensitivity_ranks_layers(pairs: dict[str, tuple[Workload, Workload]]) -> None:
    original = pairs["cnn"][1]
    made = technique("static-int8")()
    sites = made.sites(original, capture(original))
    errors = sensitivity(original, made, sites, items=2)
    assert set(errors) == set(sites.ok)
    assert all(0 < e < 0.2 for e in errors.values())


def test_bf16_is_for_the_whole_file(pairs: dict[str, tuple[Workload, Workload]]) -> None:
    original: Any = pairs["cnn"][1]
    head = list(original.model.layers())[-1]
    with pytest.raises(NotApplicable, match="cannot be left out"):
        recipe.run(recipe.parse_inline(f"bf16!{head}"), original)
    plain = runtime.backend("openvino").lower(original, threads=1)
    half = recipe.run(recipe.parse_inline("bf16"), original).workload
    assert plain.precision == "f32"  # type: ignore[attr-defined]
    assert runtime.backend("openvino").lower(half, threads=1).precision == "bf16"  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", sorted(set(BUILT_IN) - NUMERIC))
def test_all_others_need_a_torch_module(
    pairs: dict[str, tuple[Workload, Workload]], name: str
) -> None:
    original = pairs["cnn"][1]
    assert isinstance(original.model, OnnxModule)
    assert "needs a torch module" in (technique(name)().missing(original) or "")
    with pytest.raises(NotApplicable, match="needs a torch module"):
        recipe.run(recipe.parse_inline(name), original)
