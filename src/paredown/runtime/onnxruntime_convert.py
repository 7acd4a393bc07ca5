"""An exported torch model as ONNX, its nodes named after their modules."""

from __future__ import annotations

import ast
from typing import Any

import torch

from paredown.errors import LoweringError
from paredown.runtime._quiet import quiet
from paredown.runtime.export import Exported, first_line
from paredown.runtime.onnx_write import serialised


def convert(exported: Exported) -> tuple[Any, dict[str, str]]:
    """ONNX bytes (a file's path when large) of an export, and the module path of each node name."""
    from paredown.runtime import onnx_lowering as table

    _settle_layouts(exported.program)
    try:
        with quiet():
            program: Any = torch.onnx.export(
                exported.program,
                dynamo=True,
                verbose=False,
                custom_translation_table=table.translations(),
            )
    except Exception as e:
        raise LoweringError(f"onnxruntime cannot convert the model: {_cause(e)}") from e
    model = program.model
    table.lower(model)
    sites = _name_nodes(model)
    return serialised(model), sites


def _settle_layouts(program: torch.export.ExportedProgram) -> None:
    """Make attention's results contiguous: decomposed, they are laid out otherwise.

    The exporter traces views of them before it decomposes them, and then fails to replay the views.
    ONNX has no strides, so the copy is no operator there.
    """
    graph = program.graph_module.graph
    for node in list(graph.nodes):
        if str(node.target) == "aten.scaled_dot_product_attention.default":
            with graph.inserting_after(node):
                copy = graph.call_function(
                    torch.ops.aten.clone.default,
                    (node,),
                    {"memory_format": torch.contiguous_format},
                )
            copy.meta = {**node.meta, "val": node.meta["val"].contiguous()}
            node.replace_all_uses_with(
                copy, delete_user_cb=lambda user, copy=copy: user is not copy
            )
    program.graph_module.recompile()


def _name_nodes(model: Any) -> dict[str, str]:
    """Map node names to module paths; drop the exporter's notes (they quote the user's source)."""
    sites: dict[str, str] = {}
    for i, node in enumerate(model.graph):
        scopes = ast.literal_eval(node.metadata_props.get("pkg.torch.onnx.name_scopes", "[]"))
        paths = [s for s in scopes[:-1] if s == "model" or s.startswith("model.")]
        node.name = node.name or f"node_{i}"
        path = paths[-1].removeprefix("model").removeprefix(".") if paths else ""
        sites |= dict.fromkeys([node.name, *(v.name for v in node.outputs if v.name)], path)
        node.metadata_props.clear()
    for value in [*model.graph.inputs, *model.graph.initializers.values()]:
        value.metadata_props.clear()
    model.metadata_props.clear()
    return sites


def _cause(e: BaseException) -> str:
    """The innermost reason of an exporter's chain of errors."""
    while e.__cause__ is not None:
        e = e.__cause__
    return first_line(e)
