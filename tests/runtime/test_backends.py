"""Every backend against eager: outputs, save and load, refusals, odd batches, what was executed."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from runtime_nets import NETS, convnet, encoder, tied
from torch import nn

from paredown import runtime
from paredown.errors import ArtefactError, InputError, LoweringError, UnknownName
from paredown.runtime import tree
from paredown.runtime.facade import Facade
from paredown.runtime.gate import gate
from paredown.workload import Workload

COMPILED = ("native", "onnxruntime", "openvino")
FAST = ("eager", *COMPILED)


def leaves(value: Any) -> list[torch.Tensor]:
    out: list[torch.Tensor] = []
    tree.flatten(value, out, {})
    return out


def same(a: Any, b: Any, tolerance: float = 0.0) -> None:
    pairs = list(zip(leaves(a), leaves(b), strict=True))
    assert pairs
    for x, y in pairs:
        torch.testing.assert_close(x, y, rtol=tolerance, atol=tolerance)


@pytest.fixture(scope="module")
def lowered() -> dict[tuple[str, str], tuple[Workload, Any]]:
    return {}


def lower(lowered: dict[Any, Any], backend: str, net: str) -> tuple[Workload, Any]:
    if (backend, net) not in lowered:
        workload = NETS[net]()
        lowered[backend, net] = (workload, runtime.backend(backend).lower(workload, threads=1))
    return lowered[backend, net]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("net", NETS)
class TestMatrix:
    def test_output_equals_eager_in_value_and_type(
        self, lowered: Any, backend: str, net: str
    ) -> None:
        workload, executable = lower(lowered, backend, net)
        want, got = workload.call(), executable(*workload.inputs, **workload.kwargs)
        same(want, got, 1e-4)
        assert type(got) is type(want)

    def test_saved_and_loaded_is_equal(
        self, lowered: Any, backend: str, net: str, tmp_path: Path
    ) -> None:
        workload, executable = lower(lowered, backend, net)
        files = executable.save(tmp_path)
        assert files
        assert {p.name for p in tmp_path.iterdir()} == {str(f) for f in files}
        again = runtime.backend(backend).load(tmp_path, threads=1, workload=workload)
        got = again(*workload.inputs, **workload.kwargs)
        same(executable(*workload.inputs, **workload.kwargs), got)
        assert type(got) is type(workload.call())

    def test_facade_takes_any_batch_sample_by_sample(
        self, lowered: Any, backend: str, net: str
    ) -> None:
        workload, executable = lower(lowered, backend, net)
        facade = Facade(executable, workload)
        for batch in (1, 3, 5):
            other = NETS[net](batch)
            with torch.inference_mode():
                want = workload.model(*other.inputs, **other.kwargs)
            same(want, facade(*other.inputs, **other.kwargs), 1e-4)

    def test_gate_is_green(self, lowered: Any, backend: str, net: str) -> None:
        workload, executable = lower(lowered, backend, net)
        record = gate(executable, workload)
        assert record.passed
        assert record.arithmetic == "float32"
        assert record.error < 1e-4

    def test_everything_ran_in_float32(self, lowered: Any, backend: str, net: str) -> None:
        _, executable = lower(lowered, backend, net)
        ran = [r for r in executable.executed() if r.role == "compute"]
        assert ran
        assert {r.precision for r in ran} == {"float32"}
        assert all(r.fallback is None for r in ran)


@pytest.mark.parametrize("backend", COMPILED)
class TestRefusals:
    def test_other_shape_names_both(self, lowered: Any, backend: str) -> None:
        _, executable = lower(lowered, backend, "convnet")
        with pytest.raises(
            InputError, match=r"'x' was compiled for \[2, 3, 16, 16\] float32, got \[2, 3, 8"
        ):
            executable(torch.zeros(2, 3, 8, 8))

    def test_other_dtype_names_both(self, lowered: Any, backend: str) -> None:
        _, executable = lower(lowered, backend, "convnet")
        with pytest.raises(InputError, match=r"float32, got .* float64"):
            executable(torch.zeros(2, 3, 16, 16, dtype=torch.float64))

    def test_missing_and_unknown_and_changed_arguments(self, lowered: Any, backend: str) -> None:
        workload, executable = lower(lowered, backend, "tied")
        with pytest.raises(InputError, match="'extra' is missing"):
            executable(*workload.inputs, scale=2.0)
        with pytest.raises(InputError, match="'other' was not among"):
            executable(*workload.inputs, **workload.kwargs, other=torch.zeros(1))
        with pytest.raises(InputError, match=r"'scale' was compiled as 2.0, got 3.0"):
            executable(*workload.inputs, extra=workload.kwargs["extra"], scale=3.0)
        with pytest.raises(InputError, match="given twice"):
            executable(*workload.inputs, tokens=workload.inputs[0], **workload.kwargs)

    def test_arguments_may_come_by_name(self, lowered: Any, backend: str) -> None:
        workload, executable = lower(lowered, backend, "tied")
        same(workload.call(), executable(tokens=workload.inputs[0], **workload.kwargs), 1e-4)

    def test_no_other_run_in_place_of_the_one_asked(self, backend: str) -> None:
        workload = convnet()
        workload.run = "train_step"
        assert "train" in runtime.backend(backend).supports(workload, None)[0]
        workload = replace(convnet(), run="generate")
        # Inductor runs loops, but not around a model that cannot generate; the others run none.
        said = "`state`" if backend == "inductor" else "generate"
        assert said in runtime.backend(backend).supports(workload, None)[0]

    def test_damaged_folder(self, lowered: Any, backend: str, tmp_path: Path) -> None:
        _, executable = lower(lowered, backend, "convnet")
        executable.save(tmp_path)
        (tmp_path / "call.json").write_text("{")
        with pytest.raises(ArtefactError):
            runtime.backend(backend).load(tmp_path, threads=1)

    def test_model_that_branches_on_data(self, backend: str) -> None:
        class Branch(nn.Module):
            def forward(self, x: torch.Tensor) -> torch.Tensor:
                return x + 1 if x.sum() > 0 else x - 1

        with pytest.raises(LoweringError, match="cannot be exported"):
            runtime.backend(backend).lower(Workload(Branch(), (torch.ones(2),)), threads=1)


@pytest.mark.parametrize("backend", COMPILED)
def test_results_and_inputs_are_nobody_elses_memory(backend: str) -> None:
    """Small tensors go through buffers, large ones are bound; strided and inference ones alike."""

    class Twice(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

    for side in (4, 300):
        x = torch.randn(side, side)
        with torch.inference_mode():
            executable = runtime.backend(backend).lower(Workload(Twice(), (x,)), threads=1)
        first = executable(x)
        kept = first.clone()
        strided = torch.randn(side, 2 * side)[:, ::2].requires_grad_()
        torch.testing.assert_close(executable(strided), strided.detach() * 2)
        assert torch.equal(first, kept)
        with torch.inference_mode():
            assert torch.equal(executable(x + 0), kept)


def test_facade_shares_an_input_that_has_no_batch() -> None:
    class Shift(nn.Module):
        def forward(self, x: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
            return x @ table

    table = torch.randn(1, 3)
    workload = Workload(Shift(), (torch.randn(1, 1), table))
    facade = Facade(runtime.backend("openvino").lower(workload, threads=1), workload)
    x = torch.randn(4, 1)
    torch.testing.assert_close(facade(x, table), x @ table)
    with pytest.raises(InputError, match="disagree on the batch"):
        facade(x, torch.randn(3, 3))
    with pytest.raises(InputError, match="empty"):
        facade(torch.randn(0, 1), table)


def test_encoder_decoder_and_sliding_caches_come_back(tmp_path: Path) -> None:
    from transformers.cache_utils import (
        DynamicCache,
        DynamicLayer,
        DynamicSlidingWindowLayer,
        EncoderDecoderCache,
    )

    def cache(layer: Any) -> DynamicCache:
        made = DynamicCache()
        layer.update(torch.randn(1, 2, 3, 4), torch.randn(1, 2, 3, 4))
        made.layers.append(layer)
        return made

    both = EncoderDecoderCache(cache(DynamicLayer()), cache(DynamicSlidingWindowLayer(8)))
    parts: list[torch.Tensor] = []
    spec = tree.flatten({"past": both}, parts, {})
    assert len(parts) == 4
    import json

    again = tree.rebuild(json.loads(json.dumps(spec)), parts, {})["past"]
    assert isinstance(again, EncoderDecoderCache)
    sliding = again.cross_attention_cache.layers[0]
    assert isinstance(sliding, DynamicSlidingWindowLayer)
    assert (sliding.sliding_window, sliding.cumulative_length) == (8, 3)
    assert sliding.keys is parts[2]


def test_no_foreign_class_is_built_from_a_saved_description() -> None:
    """Only transformers' own outputs are looked up by name; anything else becomes a plain dict."""
    for name in ("subprocess:Popen", "transformers.utils.generic:os", "transformers:pipeline"):
        spec = {"k": "mapping", "cls": name, "v": [["x", {"k": "const", "v": 1}]]}
        assert tree.find_classes(spec) == {}
        assert tree.rebuild(spec, [], tree.find_classes(spec)) == {"x": 1}


def test_the_callers_model_is_left_alone() -> None:
    workload = convnet()
    workload.model.train()
    before = {k: v.clone() for k, v in workload.model.state_dict().items()}
    for name in FAST:
        runtime.backend(name).lower(workload, threads=1)
    assert workload.model.training
    assert all(torch.equal(v, before[k]) for k, v in workload.model.state_dict().items())


def test_eager_keeps_ties_and_non_persistent_buffers(tmp_path: Path) -> None:
    workload = tied()
    runtime.backend("eager").lower(workload, threads=1).save(tmp_path)
    other = tied()
    with torch.no_grad():
        for t in (*other.model.parameters(), *other.model.buffers()):
            t.zero_()
    loaded = runtime.backend("eager").load(tmp_path, threads=1, workload=other)
    assert loaded.model.out.weight is loaded.model.embed.weight
    same(workload.call(), loaded(*workload.inputs, **workload.kwargs))
    assert not other.model.embed.weight.any(), "the workload given to load must not be written into"


def test_eager_refuses_tensors_of_another_model(tmp_path: Path) -> None:
    runtime.backend("eager").lower(convnet(), threads=1).save(tmp_path)
    with pytest.raises(ArtefactError, match="was it saved from this model"):
        runtime.backend("eager").load(tmp_path, threads=1, workload=encoder())
    with pytest.raises(InputError, match="name the source"):
        runtime.backend("eager").load(tmp_path, threads=1)


def test_gate_is_red_for_another_network() -> None:
    workload, other = convnet(), convnet()
    other.model.head.weight.data[0] += 1.0
    record = gate(runtime.backend("eager").lower(other, threads=1), workload)
    assert not record.passed
    with pytest.raises(Exception, match="differs from the torch model"):
        record.demand()


def test_unknown_backend_suggests_one() -> None:
    with pytest.raises(UnknownName, match="openvino"):
        runtime.backend("openvin")


def test_telemetry_is_off_before_openvino_is_imported() -> None:
    import subprocess
    import sys

    code = (
        "from paredown import runtime; import sys; "
        "assert runtime.backend('openvino').available() is None; import openvino; "
        "assert not [m for m in sys.modules if m.startswith('openvino_tel') and sys.modules[m]]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["convnet", "tied"])
def test_inductor(net: str, tmp_path: Path) -> None:
    workload = NETS[net]()
    backend = runtime.backend("inductor")
    executable = backend.lower(workload, threads=1)
    same(workload.call(), executable(*workload.inputs, **workload.kwargs), 1e-4)
    executable.save(tmp_path)
    again = backend.load(tmp_path, threads=1, workload=workload)
    same(
        executable(*workload.inputs, **workload.kwargs), again(*workload.inputs, **workload.kwargs)
    )
    other = NETS[net](3)
    with pytest.raises(InputError):
        executable(*other.inputs, **other.kwargs)


@pytest.mark.parametrize("backend", COMPILED)
def test_an_executable_outlives_the_workload_it_came_from(backend: str) -> None:
    workload = convnet()
    x = workload.inputs[0]
    executable = runtime.backend(backend).lower(workload.own(), threads=1)
    before = executable(x).clone()
    del workload
    gc.collect()
    # What the allocator gives out now may be memory that the lowered model still points into.
    junk = [torch.full((n,), 7.0) for n in range(8, 40_000, 16)]
    assert torch.equal(executable(x), before)
    assert len(junk) > 1
