"""Reading a user's ``.onnx`` file: checked, its weights inside its folder, shapes as it says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from paredown.errors import MissingExtra, TargetError
from paredown.runtime.export import first_line

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
    """An input or output of the file: name, dtype, and shape with None where it is left open.

    ``labels`` are the file's own names of its open dimensions (``""`` where it gives none).
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int | None, ...]
    labels: tuple[str, ...] = ()


def read(path: Path) -> Any:
    """The checked ``onnx.ModelProto``, external weights loaded.

    Raises ``TargetError`` in one line for a file that is missing, truncated or invalid, holds no
    operators, or keeps weights outside its own folder; ``MissingExtra`` without onnx.
    """
    try:
        import onnx
    except ImportError:
        raise MissingExtra("onnx", "onnx", "reading an .onnx file") from None
    if not path.is_file():
        raise TargetError(f"{path}: no such file")
    try:
        bare = onnx.load(str(path), load_external_data=False)
    except Exception as e:
        raise TargetError(f"{path} is not a valid ONNX file: {first_line(e)}") from None
    external(bare, path)
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(str(path))
    except Exception as e:
        raise TargetError(f"{path} is not a valid ONNX file: {first_line(e)}") from None
    if not model.graph.node:
        raise TargetError(f"{path} is not a valid ONNX file: it holds no operators")
    return model


def external(model: Any, path: Path) -> list[str]:
    """Files of external data that a model names, relative to its folder, sorted.

    Raises ``TargetError`` for one that is missing or lies outside the folder of ``path``.
    """
    folder = path.resolve().parent
    names: set[str] = set()
    for tensor in tensors(model):
        names |= {e.value for e in tensor.external_data if e.key == "location"}
    for name in sorted(names):
        bad = Path(name).is_absolute() or ".." in Path(name).parts or "\\" in name
        if bad or not (folder / name).resolve().is_relative_to(folder):
            raise TargetError(
                f"{path} keeps weights outside its folder ({name}): refused, put them beside it"
            )
        if not (folder / name).is_file():
            raise TargetError(f"{path}: its weights are missing: no file {name} beside it")
    return sorted(names)


def tensors(model: Any) -> Iterator[Any]:
    """Every ``TensorProto`` of a model: initializers, attributes, subgraphs, local functions."""
    yield from _of_graph(model.graph)
    for function in model.functions:
        for node in function.node:
            yield from _of_node(node)


def _of_graph(graph: Any) -> Iterator[Any]:
    yield from graph.initializer
    for sparse in graph.sparse_initializer:
        yield from (sparse.values, sparse.indices)
    for node in graph.node:
        yield from _of_node(node)


def _of_node(node: Any) -> Iterator[Any]:
    for attribute in node.attribute:
        if attribute.HasField("t"):
            yield attribute.t
        yield from attribute.tensors
        for graph in (attribute.g, *attribute.graphs):
            yield from _of_graph(graph)


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
        labels = tuple(d.dim_param for d in tensor.shape.dim)
        found.append(Port(value.name, _TORCH[dtype], dims, labels))
    return found
