"""Writing an ONNX model: bytes, or a file beside its weights where one protobuf is too small."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from paredown.runtime.onnx_file import external

EXTERNAL_BYTES = 1_500_000_000
"""Weights above this go beside the file: one protobuf cannot hold 2 GB."""


def serialised(model: Any) -> Any:
    """An ``onnx_ir`` model as bytes, or the path of a file in a temporary folder when large."""
    import onnx_ir as ir

    total = sum(v.const_value.nbytes for v in model.graph.initializers.values())
    if total < EXTERNAL_BYTES:
        return ir.to_proto(model).SerializeToString()
    folder = Path(tempfile.mkdtemp(prefix="paredown-onnx-"))
    ir.save(model, folder / "model.onnx", external_data="model.onnx.data")
    return folder / "model.onnx"


def written(model: Any) -> Any:
    """A ``ModelProto`` as bytes, or the path of a file in a temporary folder when large."""
    import onnx

    if sum(len(t.raw_data) for t in model.graph.initializer) < EXTERNAL_BYTES:
        return model.SerializeToString()
    path = Path(tempfile.mkdtemp(prefix="paredown-onnx-")) / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx.data")
    return str(path)


def copy_model(source: Path, folder: Path) -> list[Path]:
    """Copy a model to ``folder/model.onnx`` and its external weights beside it: their names."""
    import onnx

    beside = external(onnx.load(str(source), load_external_data=False), source)
    shutil.copyfile(source, folder / "model.onnx")
    for name in beside:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source.parent / name, folder / name)
    return [Path(name) for name in beside]
