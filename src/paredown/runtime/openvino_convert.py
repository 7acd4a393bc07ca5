"""An exported torch model, or an ONNX file put together from its layers, as an ``ov.Model``."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from paredown.errors import LoweringError
from paredown.runtime import _openvino_lowering as table
from paredown.runtime._quiet import quiet
from paredown.runtime.export import Exported, module_of
from paredown.runtime.onnx_model import OnnxModule
from paredown.runtime.onnx_write import written
from paredown.runtime.openvino_plugin import OV_TYPES, openvino, partial_shape, reason


def convert(exported: Exported) -> tuple[Any, dict[str, str]]:
    """An ``ov.Model`` of static shapes, and the module path of each exported node's name.

    Raises ``LoweringError`` with the converter's own words for an operator it does not know.
    """
    ov = openvino()
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    results = [OV_TYPES[t] for t in exported.results]
    table.prepare(exported.program)
    try:
        with quiet():
            decoder = TorchFXPythonDecoder.from_exported_program(
                exported.program, dynamic_shapes=False
            )
            model = ov.convert_model(decoder, extension=table.extensions())
        for parameter, example in zip(model.get_parameters(), exported.examples, strict=True):
            parameter.set_partial_shape(partial_shape(example))
        model.validate_nodes_and_infer_types()
        table.narrow(model)
        model = _boundary(model, [OV_TYPES[t.dtype] for t in exported.examples], results)
    except LoweringError:
        raise
    except Exception as e:
        raise LoweringError(f"openvino cannot convert the model: {reason(e)}") from e
    sites = {n.name: module_of(n) for n in decoder.fx_gm.graph.nodes if n.op == "call_function"}
    return model, sites


def read_file(module: OnnxModule, name: str, examples: list[Tensor]) -> Any:
    """An ONNX file, put together from its layers, through OpenVINO's own reader.

    Shapes are fixed to the examples'. Raises ``LoweringError`` with the reader's own words.
    """
    core = openvino().Core()
    for extension in table.onnx_extensions():
        core.add_extension(extension)
    try:
        with quiet():
            model = core.read_model(written(module.render(dynamic=False)))
        model.reshape({i: partial_shape(t) for i, t in enumerate(examples)})
        if module.precision == "bfloat16":
            table.narrow(model)
    except Exception as e:
        raise LoweringError(f"openvino cannot read {name}: {reason(e)}") from e
    return model


def _boundary(model: Any, inputs: list[str], outputs: list[str]) -> Any:
    """Casts where the converted model takes or gives other types than the torch model."""
    from openvino import Type
    from openvino.preprocess import PrePostProcessor

    steps = PrePostProcessor(model)
    for i, name in enumerate(inputs):
        if model.inputs[i].get_element_type().to_string() != name:
            steps.input(i).tensor().set_element_type(getattr(Type, name))
    for i, name in enumerate(outputs):
        if model.outputs[i].get_element_type().to_string() != name:
            steps.output(i).tensor().set_element_type(getattr(Type, name))
    return steps.build()
