"""An ONNX file taken apart and put together: names, weights, what is refused, what hooks see."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx_nets import exported

from paredown import runtime
from paredown.errors import InputError, TargetError
from paredown.graph.capture import capture
from paredown.runtime.onnx_file import external
from paredown.runtime.onnx_layers import OnnxConv, OnnxLinear
from paredown.runtime.onnx_workload import from_reference, onnx_workload
from paredown.workload import Workload

Exported = tuple[Path, Any, tuple[torch.Tensor, ...]]
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def cnn(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    return exported("cnn", tmp_path_factory.mktemp("cnn"))


def tensor(name: str, *shape: int, dtype: Any = np.float32) -> Any:
    return numpy_helper.from_array(RNG.normal(size=shape).astype(dtype), name)


def save(
    path: Path,
    nodes: list[Any],
    weights: list[Any],
    x: tuple[Any, ...] = (2, 8),
    y: tuple[Any, ...] = (2, 4),
    opset: int = 17,
) -> Path:
    """A file with one input ``x`` and one output ``y``."""
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, x)]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)]
    graph = helper.make_graph(nodes, "g", inputs, outputs, weights)
    opsets = [helper.make_opsetid("", opset)]
    path.write_bytes(
        helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
    )
    return path


def node(op: str, inputs: str, output: str, name: str = "", **settings: Any) -> Any:
    return helper.make_node(op, inputs.split(), [output], name=name, **settings)


def test_paths_come_from_names_and_never_collide(tmp_path: Path) -> None:
    nodes = [
        node("MatMul", "x a", "h0", "/blocks.0/fc/MatMul"),
        node("MatMul", "h0 b", "h1", "/blocks.0/fc/MatMul"),
        node("MatMul", "h1 c", "h2"),
        node("MatMul", "h2 d", "h3", "forward/type"),
        node("MatMul", "h3 e", "y", "forward"),
    ]
    weights = [tensor(n, 8, 8) for n in "abcd"] + [tensor("e", 8, 4)]
    module: Any = onnx_workload(save(tmp_path / "n.onnx", nodes, weights)).model
    paths = list(module.layers())
    assert paths[0] == "blocks.0.fc.MatMul"
    assert len(set(paths)) == 5
    assert not any(a != b and b.startswith(a + ".") for a in paths for b in paths)
    assert all(module.get_submodule(p).weight.shape[1] == 8 for p in paths)


def test_linear_weights_stand_out_by_in_however_the_file_has_them(tmp_path: Path) -> None:
    w = tensor("w", 8, 4)
    turned = numpy_helper.from_array(np.ascontiguousarray(numpy_helper.to_array(w).T), "t")
    bias = tensor("b", 4)
    forms = {
        "matmul": ([node("MatMul", "x w", "y")], [w]),
        "turned": (
            [node("Transpose", "t", "w", perm=[1, 0]), node("MatMul", "x w", "y")],
            [turned],
        ),
        "gemm": ([node("Gemm", "x w b", "y")], [w, bias]),
        "gemm turned": ([node("Gemm", "x t b", "y", transB=1)], [turned, bias]),
    }
    for name, (nodes, weights) in forms.items():
        workload = onnx_workload(save(tmp_path / f"{name}.onnx", nodes, weights))
        (layer,) = workload.model.layers().values()  # type: ignore[operator]
        assert isinstance(layer, OnnxLinear)
        assert layer.weight is not None
        np.testing.assert_array_equal(layer.weight.numpy(), numpy_helper.to_array(w).T)
        assert (layer.bias is not None) == ("gemm" in name)
        again = runtime.backend("openvino").lower(workload, threads=1)
        torch.testing.assert_close(again(*workload.inputs), workload.call(), rtol=1e-4, atol=1e-5)


def refusals(path: Path) -> list[str | None]:
    module: Any = onnx_workload(path).model
    return [m.refusal for m in module.layers().values()]


def test_layers_without_a_weight_of_their_own_say_why(tmp_path: Path) -> None:
    shared = [node("MatMul", "x w", "h"), node("MatMul", "h w", "y")]
    path = save(tmp_path / "s.onnx", shared, [tensor("w", 8, 8)], y=(2, 8))
    assert refusals(path) == ["its weight is shared by 2 nodes"] * 2
    scaled = [node("Gemm", "x w", "y", alpha=0.5)]
    (why,) = refusals(save(tmp_path / "a.onnx", scaled, [tensor("w", 8, 4)]))
    assert why is not None
    assert "alpha" in why
    given = [node("MatMul", "x w", "h"), node("Add", "h w", "y")]
    path = save(tmp_path / "o.onnx", given, [tensor("w", 8, 8)], x=(8, 8), y=(8, 8))
    assert refusals(path) == ["its weight is shared by 2 nodes"]


def test_an_old_operator_set_is_converted_for_what_is_rewritten(tmp_path: Path) -> None:
    path = save(tmp_path / "old.onnx", [node("Gemm", "x w b", "y")],
                [tensor("w", 8, 4), tensor("b", 4)], opset=11)  # fmt: skip
    module: Any = onnx_workload(path).model
    assert refusals(path) == [None]
    assert module.skeleton.opset_import[0].version == 13


def test_asymmetric_padding_survives(tmp_path: Path) -> None:
    conv = node("Conv", "x w", "y", pads=[0, 1, 1, 0])
    path = save(tmp_path / "p.onnx", [conv], [tensor("w", 4, 3, 2, 2)], (1, 3, 5, 5), (1, 4, 5, 5))
    workload = onnx_workload(path)
    (layer,) = workload.model.layers().values()  # type: ignore[operator]
    assert isinstance(layer, OnnxConv)
    again = runtime.backend("openvino").lower(workload, threads=1)
    torch.testing.assert_close(again(*workload.inputs), workload.call(), rtol=1e-4, atol=1e-5)


def test_hooks_see_the_inputs_of_layers(cnn: Exported) -> None:
    path, model, inputs = cnn
    workload = onnx_workload(path, inputs)
    want: list[torch.Tensor] = []
    model.head.register_forward_pre_hook(lambda _m, args: want.append(args[0]))
    with torch.inference_mode():
        model(*inputs)
    seen: list[torch.Tensor] = []
    last: Any = list(workload.model.layers().values())[-1]  # type: ignore[operator]
    plain = workload.call()
    handle = last.register_forward_pre_hook(lambda _m, args: seen.append(args[0]))
    torch.testing.assert_close(workload.call(), plain, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(seen[0], want[0], rtol=1e-4, atol=1e-5)
    handle.remove()
    workload.call()
    assert len(seen) == 1


def test_copies_and_other_processes_run_the_file_itself(cnn: Exported) -> None:
    path, _, inputs = cnn
    workload = onnx_workload(path, inputs)
    want = workload.call()
    for other in (workload.copy().model, copy.deepcopy(workload.model)):
        assert not other.changed
        assert torch.equal(other(*inputs), want)
    again = pickle.loads(pickle.dumps(workload))
    assert torch.equal(again.call(), want)


def test_any_batch_beside_the_fixed_one(cnn: Exported, tmp_path: Path) -> None:
    path, model, _ = cnn
    x = torch.randn(5, 3, 32, 32)
    module = onnx_workload(path).model
    with torch.inference_mode():
        torch.testing.assert_close(module(x), model(x), rtol=1e-4, atol=1e-5)
    nodes, weights = [node("MatMul", "x w", "y")], [tensor("w", 8, 4)]
    module = onnx_workload(save(tmp_path / "two.onnx", nodes, weights)).model
    one = torch.randn(3, 8)
    torch.testing.assert_close(module(one)[2:], module(one[1:])[1:])
    with pytest.raises(InputError, match=r"input 'x' is float32, got float64"):
        module(one.double())


def test_a_file_counts_its_bytes_and_the_work_of_its_source(cnn: Exported) -> None:
    path, model, inputs = cnn
    workload = onnx_workload(path, inputs)
    assert workload.model.stored_bytes() == path.stat().st_size  # type: ignore[operator]
    graph = capture(workload)
    assert not graph.unpriced
    want = capture(Workload(model, inputs))
    assert (graph.macs, graph.params) == (want.macs, want.params)


def outside(path: Path, name: str) -> None:
    """Move the first weight of a file to ``name`` beside or outside of it."""
    model = onnx.load(str(path))
    t = model.graph.initializer[0]
    (path.parent / name).resolve().write_bytes(t.raw_data)
    t.ClearField("raw_data")
    t.data_location = TensorProto.EXTERNAL
    entry = t.external_data.add()
    entry.key, entry.value = "location", name
    path.write_bytes(model.SerializeToString())


def test_weights_beside_the_file_count_and_travel(tmp_path: Path) -> None:
    path = save(tmp_path / "n.onnx", [node("MatMul", "x w", "y")], [tensor("w", 8, 4)])
    want = onnx_workload(path).call()
    outside(path, "w.bin")
    workload = onnx_workload(path)
    assert external(onnx.load(str(path), load_external_data=False), path) == ["w.bin"]
    beside = path.stat().st_size + (tmp_path / "w.bin").stat().st_size
    assert workload.model.stored_bytes() == beside  # type: ignore[operator]
    executable = runtime.backend("onnxruntime").lower(workload, threads=1)
    executable.save(tmp_path / "saved")
    again = runtime.backend("onnxruntime").load(tmp_path / "saved", threads=1)
    assert torch.equal(again(*workload.inputs), want)


def test_weights_outside_the_folder_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "inner"
    folder.mkdir()
    path = save(folder / "n.onnx", [node("MatMul", "x w", "y")], [tensor("w", 8, 4)])
    whole = path.read_bytes()
    outside(path, "../w.bin")
    with pytest.raises(TargetError, match=r"outside its folder \(\.\./w\.bin\)"):
        onnx_workload(path)
    path.write_bytes(whole)
    outside(path, "link.bin")
    (folder / "link.bin").rename(tmp_path / "w.bin")
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    with pytest.raises(TargetError, match="outside its folder"):
        onnx_workload(path)
    (folder / "link.bin").unlink()
    with pytest.raises(TargetError, match=r"no file link\.bin beside it"):
        onnx_workload(path)


def test_open_dimensions_ask_for_a_shape(tmp_path: Path) -> None:
    conv = node("Conv", "x w", "y")
    open_ = ("N", 3, "H", "W")
    path = save(tmp_path / "o.onnx", [conv], [tensor("w", 4, 3, 3, 3)], open_, ("N", 4, "a", "b"))
    with pytest.raises(
        TargetError, match=r"leaves dimension H, W of input 'x' open.*o\.onnx\?x=1x"
    ):
        onnx_workload(path)
    workload = from_reference(f"{path}?x=2x3x9x9")
    assert workload.call().shape == (2, 4, 7, 7)
    assert onnx_workload(path, torch.randn(4, 3, 6, 6)).call().shape == (4, 4, 4, 4)
    for query, says in {
        "x=2x4x9x9": r"input 'x' is \?x3x\?x\?, not 2x4x9x9",
        "z=1": "has no input 'z'; it has x",
        "x=big": "malformed shape 'x=big'",
        "x": "malformed shape 'x'",
        "x=0x3x9x9": "malformed shape",
    }.items():
        with pytest.raises(TargetError, match=says):
            from_reference(f"{path}?{query}")


def test_what_onnx_runtime_cannot_open_is_refused_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "new.onnx", [node("MatMul", "x w", "y")], [tensor("w", 8, 4)], opset=99)
    with pytest.raises(TargetError, match=r"new\.onnx: onnxruntime cannot open.*[Oo]pset") as e:
        onnx_workload(path).call()
    assert "\n" not in str(e.value)
    assert "onnxruntime_src" not in str(e.value)
