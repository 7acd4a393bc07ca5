"""A user's ``.onnx`` file as a workload: checked, with inputs made up, behind a module facade."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from paredown.errors import MissingExtra, NotApplicable, TargetError
from paredown.graph.graph import Graph
from paredown.graph.onnx import from_onnx
from paredown.runtime import tree
from paredown.runtime.backend import Asked
from paredown.runtime.call import Call, describe
from paredown.runtime.export import first_line
from paredown.workload import Workload

FREE_DIMENSION = 1
"""Size of a dimension the file leaves open (a batch, most often)."""

_TORCH = {
    "FLOAT": torch.float32,
    "FLOAT16": torch.float16,
    "DOUBLE": torch.float64,
    "BFLOAT16": torch.bfloat16,
    "INT8": torch.int8,
    "UINT8": torch.uint8,
    "INT16": torch.int16,
    "INT32": torch.int32,
    "INT64": torch.int64,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class Port:
    """An input or output of the file: name, dtype, and shape with None where it is left open."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]


class OnnxModule(nn.Module):
    """An ONNX file as a module of its inputs in order; run by ONNX Runtime with its defaults.

    Returns one tensor, or a tuple of several. Its weights are not torch parameters: techniques that
    rewrite torch modules answer "needs a torch module" (`needs_torch`).
    """

    def __init__(self, path: Path, model: Any, inputs: list[Port], outputs: list[Port]) -> None:
        super().__init__()
        self.path, self.inputs, self.outputs = path, inputs, outputs
        self.model = model
        self.input_names = [p.name for p in inputs]
        self.threads = torch.get_num_threads()
        self._session: Any = None

    def forward(self, *args: torch.Tensor, **kwargs: torch.Tensor) -> Any:
        """Run the file; inputs by position or by name."""
        given = dict(zip([p.name for p in self.inputs], args, strict=False)) | kwargs
        missing = [p.name for p in self.inputs if p.name not in given]
        if missing or len(given) > len(self.inputs):
            names = ", ".join(p.name for p in self.inputs)
            raise TargetError(f"{self.path.name} takes the inputs {names}")
        feeds = {k: v.detach().contiguous().numpy() for k, v in given.items()}
        out = [torch.from_numpy(np.asarray(o)) for o in self.session.run(None, feeds)]
        return out[0] if len(out) == 1 else tuple(out)

    def own_graph(self, inputs: tuple[torch.Tensor, ...]) -> Graph:
        """The file's operators on inputs of these shapes (`graph.capture` asks for it)."""
        shapes = {p.name: list(t.shape) for p, t in zip(self.inputs, inputs, strict=True)}
        return from_onnx(self.model, shapes)

    @property
    def session(self) -> Any:
        """The ONNX Runtime session, opened on first use with the threads torch has then."""
        from paredown.runtime.onnxruntime import session

        if self._session is None or self.threads != torch.get_num_threads():
            self.threads = torch.get_num_threads()
            self._session = session(self.path, self.threads)
        return self._session

    def __deepcopy__(self, memo: dict[int, Any]) -> OnnxModule:
        """A copy shares the file and its weights, which nothing changes."""
        return OnnxModule(self.path, self.model, self.inputs, self.outputs)


def onnx_workload(path: Path) -> Workload:
    """A workload of an ONNX file, inputs made up from its declared shapes (open ones become 1).

    Raises ``TargetError`` in one line for a file that is missing, truncated or invalid, or whose
    inputs are not tensors; ``MissingExtra`` without onnx.
    """
    model = read(path)
    inputs, outputs = ports(model.graph.input, path), ports(model.graph.output, path)
    constants = {i.name for i in model.graph.initializer}
    inputs = [p for p in inputs if p.name not in constants]
    if not inputs:
        raise TargetError(f"{path} has no inputs")
    generator = torch.Generator().manual_seed(0)
    example = tuple(_example(p, generator) for p in inputs)
    return Workload(OnnxModule(path, model, inputs, outputs).eval(), example, name=path.stem)


def read(path: Path) -> Any:
    """The checked ``onnx.ModelProto`` with shapes inferred where they can be."""
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "onnx", "reading an .onnx file") from None
    if not path.is_file():
        raise TargetError(f"{path}: no such file")
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(str(path))
    except Exception as e:
        raise TargetError(f"{path} is not a valid ONNX file: {first_line(e)}") from None
    if not model.graph.node:
        raise TargetError(f"{path} is not a valid ONNX file: it holds no operators")
    return onnx.shape_inference.infer_shapes(model)


def ports(values: Any, path: Path) -> list[Port]:
    """Inputs or outputs of a graph. Raises ``TargetError`` for one that is no tensor."""
    import onnx

    found: list[Port] = []
    for value in values:
        if not value.type.HasField("tensor_type"):
            raise TargetError(f"{path}: {value.name!r} is not a tensor")
        tensor = value.type.tensor_type
        dtype = onnx.TensorProto.DataType.Name(tensor.elem_type)
        if dtype not in _TORCH:
            raise TargetError(f"{path}: {value.name!r} is {dtype}, which torch does not know")
        dims = tuple(d.dim_value if d.HasField("dim_value") else None for d in tensor.shape.dim)
        found.append(Port(value.name, _TORCH[dtype], dims))
    return found


def described(workload: Workload) -> tuple[Call, list[torch.Tensor], dict[str, Asked]]:
    """Call, example tensors and asked numbers of an ONNX workload, as `export` gives them."""
    module: Any = workload.model
    call, examples = describe(module, workload.inputs, workload.kwargs)
    leaves: list[torch.Tensor] = []
    call.output = tree.flatten(workload.call(), leaves, call.classes)
    kinds = {n.op_type for n in module.model.graph.node}
    quantized = bool(kinds & {"QLinearConv", "QLinearMatMul", "QuantizeLinear", "MatMulInteger"})
    return call, examples, {"": Asked("int8", "static")} if quantized else {}


def needs_torch(workload: Workload) -> str | None:
    """Why torch techniques cannot act on a workload, None when they can."""
    if isinstance(workload.model, OnnxModule):
        return f"{workload.name} is an ONNX file: this needs a torch module"
    return None


def refuse_onnx(workload: Workload) -> None:
    """Raise ``NotApplicable`` for a workload that is an ONNX file."""
    if why := needs_torch(workload):
        raise NotApplicable(why)


def _example(port: Port, generator: torch.Generator) -> torch.Tensor:
    """Normal floats; zeros and ones for integers, which any table has."""
    shape = [FREE_DIMENSION if d is None else d for d in port.shape]
    if port.dtype.is_floating_point:
        return torch.randn(shape, generator=generator).to(port.dtype)
    return torch.randint(0, 2, shape, generator=generator).to(port.dtype)
