"""OpenVINO's CPU plugin. Left alone it runs fp32 models in bf16: here it is always told."""

from __future__ import annotations

import json
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch

from paredown.errors import ArtefactError, CaptureError, LoweringError, MissingExtra
from paredown.graph.graph import Graph
from paredown.runtime._quiet import no_telemetry, quiet
from paredown.runtime.backend import COMPUTE, Asked, Backend, Executable, Ran
from paredown.runtime.call import Call
from paredown.runtime.export import Exported, export, first_line, module_of
from paredown.runtime.onnx_model import OnnxModule, described
from paredown.runtime.onnxruntime import EXTERNAL_BYTES
from paredown.workload import Workload

PRECISIONS = {
    "f32": "float32",
    "f16": "float16",
    "bf16": "bfloat16",
    "i8": "int8",
    "u8": "int8",
    "i4": "int4",
    "u4": "int4",
    "i32": "int32",
    "i64": "int64",
    "boolean": "bool",
}
MATRIX_LAYERS = frozenset(
    {
        "Convolution",
        "Deconvolution",
        "FullyConnected",
        "MatMul",
        "GroupConvolution",
        "RNNSeq",
        "RNNCell",
        "ScaledDotProductAttention",
    }
)
CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
QUIET_LAYERS = frozenset({"Const", "Input", "Output", "Parameter", "Result"})


BOUND_BYTES = 1 << 17
"""Up to here copying a tensor (about 10 GB/s) is cheaper than binding it (about 20 us)."""


class OpenVinoExecutable(Executable):
    """A compiled OpenVINO model behind the original call."""

    backend = "openvino"
    keeps: Any = None
    """Whatever holds memory that the compiled model points into."""

    def __init__(
        self, model: Any, call: Call, asked: dict[str, Asked], sites: dict[str, str], threads: int
    ) -> None:
        self.model, self.call, self.asked, self.sites = model, call, asked, sites
        self.threads = threads
        start = time.perf_counter()
        self.precision = "bf16" if _has_bf16(asked) else "f32"
        self.dynamic = any(a.activation == "dynamic" for a in asked.values())
        self.compiled = _compile(model, _hints(self.precision, threads, self.dynamic))
        self.compile_s = time.perf_counter() - start
        self._request = self.compiled.create_infer_request()
        self._inputs = [
            self._own(
                self._request.set_input_tensor, i, tuple(info.shape), getattr(torch, info.dtype)
            )
            for i, info in enumerate(self.call.inputs)
        ]
        self._results = [
            (tuple(o.get_shape()), TORCH_TYPES[o.get_element_type().to_string()])
            for o in self.compiled.outputs
        ]
        self._outputs = [
            self._own(self._request.set_output_tensor, i, shape, dtype)
            for i, (shape, dtype) in enumerate(self._results)
        ]

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run once. Large tensors are not copied, small ones are: binding one costs more."""
        # Bound memory must stay alive until the run is over: `alive` holds contiguous copies too.
        alive: list[torch.Tensor] = []
        for i, leaf in enumerate(self.call.tensors(args, kwargs)):
            own = self._inputs[i]
            if own is not None:
                own.copy_(leaf.detach())
            else:
                alive.append(leaf.detach().contiguous())
                self._request.set_input_tensor(i, _ov_tensor(alive[-1]))
        out: list[torch.Tensor] = []
        for i, (own, (shape, dtype)) in enumerate(zip(self._outputs, self._results, strict=True)):
            if own is None:
                own = torch.empty(shape, dtype=dtype)
                self._request.set_output_tensor(i, _ov_tensor(own))
            out.append(own)
        self._request.infer()
        fresh = [t if own is None else t.clone() for t, own in zip(out, self._outputs, strict=True)]
        return self.call.result(fresh)

    @staticmethod
    def _own(bind: Any, index: int, shape: tuple[int, ...], dtype: torch.dtype) -> Any:
        """A buffer bound once for a small input or output, None for one bound at each call."""
        # Made in inference mode it could not be written to outside of it.
        with torch.inference_mode(False):
            buffer = torch.zeros(shape, dtype=dtype)
        if buffer.nbytes > BOUND_BYTES:
            return None
        bind(index, _ov_tensor(buffer))
        return buffer

    def executed(self) -> list[Ran]:
        """Precision per layer from the plugin's runtime model, and weights as they are held."""
        layers = [_Layer(n) for n in self.compiled.get_runtime_model().get_ordered_ops()]
        layers = [layer for layer in layers if layer.kind not in QUIET_LAYERS]
        rows: list[Ran] = []
        for layer, sites in zip(layers, self._sites(layers), strict=True):
            precision = self._precision(layer)
            for site in sites:
                why = self._otherwise(site, layer.kind, precision) if layer.matrix else None
                role = COMPUTE if layer.matrix else ""
                rows.append(Ran(site, layer.kind, precision, why, role))
                if (held := layer.weight()) is not None:
                    rows.append(Ran(site, "weight", held))
        return rows

    def save(self, folder: Path) -> list[Path]:
        """Write ``model.xml``, ``model.bin`` (integer weights as integers) and ``call.json``."""
        import openvino as ov

        folder.mkdir(parents=True, exist_ok=True)
        try:
            ov.save_model(self.model, folder / "model.xml", compress_to_fp16=False)
        except RuntimeError as e:
            raise LoweringError(f"openvino could not save the model: {first_line(e)}") from e
        meta = {
            "call": self.call.to_json(),
            "asked": {site: a.to_json() for site, a in self.asked.items()},
            "sites": self.sites,
        }
        (folder / "call.json").write_text(json.dumps(meta), encoding="utf-8")
        return [Path("model.xml"), Path("model.bin"), Path("call.json")]

    def weight_bytes(self) -> int:
        """Bytes of the constants of the compiled model, in the layout the plugin keeps them."""
        total = 0
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            if _runtime_info(node)["layerType"] == "Const":
                kind = node.get_output_element_type(0)
                total += (int(np.prod(list(node.get_output_shape(0)))) * kind.bitwidth + 7) // 8
        return total

    def _sites(self, layers: list[_Layer]) -> list[list[str]]:
        """The modules of each layer: of its matrix products, else of its first known part.

        Folding a norm into a product renames it; products without a name are matched in order with
        the modules that no layer names, when there are as many of either.
        """
        products = {site for site, a in self.asked.items() if a.product}
        found: list[list[str]] = []
        for layer in layers:
            known = [self.sites[n] for n in layer.names if n in self.sites]
            named = (
                [s for s in dict.fromkeys(known) if s in products] if layer.matrix else known[:1]
            )
            found.append(named)
        lost = [i for i, layer in enumerate(layers) if layer.matrix and not found[i]]
        seen = {s for sites in found for s in sites}
        missing = [s for s in self.asked if s in products and s not in seen]
        if len(lost) == len(missing):
            for i, site in zip(lost, missing, strict=True):
                found[i] = [site]
        return [sites or [""] for sites in found]

    def _precision(self, layer: _Layer) -> str:
        """What a layer computes in.

        A product that quantizes its activations on the way still names a float kernel; whether this
        processor's plugin does that is found out by trying.
        """
        compressed = layer.matrix and layer.weight() in ("int8", "int4")
        if compressed and layer.precision == "float32" and self.dynamic:
            columns = int(layer.node.get_input_shape(0)[-1])
            return "int8" if _quantizes_inside(columns) else layer.precision
        return layer.precision

    def _otherwise(self, site: str, kind: str, precision: str) -> str | None:
        asked = self.asked.get(site)
        if asked is not None and asked.weight and not asked.activation and kind in CONVOLUTIONS:
            return "the CPU plugin unpacks its weights as it compiles: fewer bytes on disk alone"
        if asked is None or precision == asked.compute:
            return None
        return f"asked for {asked.compute}, the CPU plugin ran it in {precision}"


class OpenVino(Backend):
    """The ``openvino`` backend."""

    name: ClassVar[str] = "openvino"
    extra: ClassVar[str | None] = "openvino"
    loads_without_paredown: ClassVar[bool] = True

    def available(self) -> str | None:
        """None when openvino can be imported, else the install line."""
        try:
            _openvino()
        except MissingExtra as e:
            return str(e)
        return None

    def supports(self, workload: Workload, graph: Graph | None) -> list[str]:
        """Only forward runs; operators are known after conversion alone."""
        if workload.run != "forward":
            return [f"openvino runs `forward`, not {workload.run!r}"]
        return []

    def lower(self, workload: Workload, *, threads: int) -> OpenVinoExecutable:
        """Export, convert with the lowering table, compile."""
        _openvino()
        if isinstance(workload.model, OnnxModule):
            return self._lower_file(workload, threads)
        try:
            exported = export(workload)
        except CaptureError as e:
            raise LoweringError(f"openvino: {e}") from e
        start = time.perf_counter()
        model, sites = convert(exported)
        converting = time.perf_counter() - start
        out = OpenVinoExecutable(model, exported.call, exported.asked, sites, threads)
        # Constants share the torch tensors' memory without holding it: it must outlive the model.
        out.keeps = exported.program
        out.compile_s += converting
        return out

    def _lower_file(self, workload: Workload, threads: int) -> OpenVinoExecutable:
        """An ONNX file, put together from its layers, through OpenVINO's own reader.

        Shapes are fixed to the example's.
        """
        from paredown.runtime import _openvino_lowering as table

        ov = _openvino()
        module: Any = workload.model
        call, examples, asked = described(workload)
        start = time.perf_counter()
        core = ov.Core()
        for extension in table.onnx_extensions():
            core.add_extension(extension)
        try:
            with quiet():
                model = core.read_model(_written(module.render(dynamic=False)))
            model.reshape({i: _partial(t) for i, t in enumerate(examples)})
            if module.precision == "bfloat16":
                table.narrow(model)
        except Exception as e:
            raise LoweringError(f"openvino cannot read {workload.name}: {_reason(e)}") from e
        reading = time.perf_counter() - start
        out = OpenVinoExecutable(model, call, asked, module.sites(), threads)
        out.compile_s += reading
        return out

    def load(
        self, folder: Path, *, threads: int, workload: Workload | None = None
    ) -> OpenVinoExecutable:
        """Read ``model.xml`` and ``call.json`` back; the workload is not needed."""
        ov = _openvino()
        try:
            meta = json.loads((folder / "call.json").read_text(encoding="utf-8"))
            model = ov.Core().read_model(folder / "model.xml")
            asked = {site: Asked(**a) for site, a in meta["asked"].items()}
            sites = dict(meta["sites"])
        except (OSError, ValueError, KeyError, TypeError, RuntimeError) as e:
            raise ArtefactError(
                f"{folder} holds no readable openvino model: {first_line(e)}"
            ) from e
        return OpenVinoExecutable(model, Call.from_json(meta["call"]), asked, sites, threads)


def _written(model: Any) -> Any:
    """A ``ModelProto`` as OpenVINO reads it: bytes, or a file beside its weights when large."""
    import onnx

    if sum(len(t.raw_data) for t in model.graph.initializer) < EXTERNAL_BYTES:
        return model.SerializeToString()
    path = Path(tempfile.mkdtemp(prefix="paredown-onnx-")) / "model.onnx"
    onnx.save(model, str(path), save_as_external_data=True, location="model.onnx.data")
    return str(path)


def convert(exported: Exported) -> tuple[Any, dict[str, str]]:
    """An ``ov.Model`` of static shapes, and the module path of each exported node's name.

    Raises ``LoweringError`` with the converter's own words for an operator it does not know.
    """
    ov = _openvino()
    from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

    from paredown.runtime import _openvino_lowering as table

    results = [OV_TYPES[t] for t in exported.results]
    table.prepare(exported.program)
    try:
        with quiet():
            decoder = TorchFXPythonDecoder.from_exported_program(
                exported.program, dynamic_shapes=False
            )
            model = ov.convert_model(decoder, extension=table.extensions())
        for parameter, example in zip(model.get_parameters(), exported.examples, strict=True):
            parameter.set_partial_shape(_partial(example))
        model.validate_nodes_and_infer_types()
        table.narrow(model)
        model = _boundary(model, [OV_TYPES[t.dtype] for t in exported.examples], results)
    except LoweringError:
        raise
    except Exception as e:
        raise LoweringError(f"openvino cannot convert the model: {_reason(e)}") from e
    sites = {n.name: module_of(n) for n in decoder.fx_gm.graph.nodes if n.op == "call_function"}
    return model, sites


TORCH_TYPES = {
    "f32": torch.float32,
    "f16": torch.float16,
    "bf16": torch.bfloat16,
    "f64": torch.float64,
    "i8": torch.int8,
    "u8": torch.uint8,
    "i16": torch.int16,
    "i32": torch.int32,
    "i64": torch.int64,
    "boolean": torch.bool,
}


OV_TYPES = {dtype: name for name, dtype in TORCH_TYPES.items()}


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


def _openvino() -> Any:
    no_telemetry()
    try:
        import openvino
    except ImportError:
        raise MissingExtra("openvino", "openvino", "the openvino backend") from None
    return openvino


def _hints(precision: str, threads: int, dynamic: bool) -> dict[str, Any]:
    return {
        "INFERENCE_PRECISION_HINT": precision,
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
        "PERFORMANCE_HINT": "LATENCY",
        # Left alone the plugin quantizes activations beside compressed weights on its own.
        "DYNAMIC_QUANTIZATION_GROUP_SIZE": 32 if dynamic else 0,
    }


@cache
def _quantizes_inside(columns: int) -> bool:
    """Whether the plugin really quantizes activations beside int8 weights of that many columns.

    It does not say so anywhere; a small product that comes out otherwise with the hint on does.
    """
    import openvino as ov
    import openvino.opset15 as ops

    random = np.random.default_rng(0)
    weight = ops.convert(
        ops.constant(random.integers(-127, 128, (32, columns)).astype(np.int8)), "f32"
    )
    scaled = ops.multiply(weight, ops.constant(np.full((32, 1), 0.01, np.float32)))
    x = ops.parameter([1, 16, columns], np.float32)
    build: Any = ov.Model
    model = build([ops.matmul(x, scaled, False, True)], [x])
    data = random.normal(size=(1, 16, columns)).astype(np.float32)
    plain, quantized = (_compile(model, _hints("f32", 1, on))([data])[0] for on in (False, True))
    return not np.allclose(plain, quantized, rtol=1e-4, atol=1e-4)


def _compile(model: Any, hints: dict[str, Any]) -> Any:
    import openvino as ov

    try:
        return ov.Core().compile_model(model, "CPU", hints)
    except RuntimeError as e:
        raise LoweringError(f"openvino cannot compile the model: {_reason(e)}") from e


def _partial(example: torch.Tensor) -> Any:
    import openvino as ov

    return ov.PartialShape(list(example.shape))


def _name(precision: str) -> str:
    return PRECISIONS.get(precision, precision)


def _ov_tensor(leaf: torch.Tensor) -> Any:
    """An ``ov.Tensor`` over a contiguous torch tensor's memory, which the caller keeps alive."""
    import openvino as ov

    if leaf.dtype == torch.bfloat16:
        return ov.Tensor(leaf.view(torch.int16).numpy(), ov.Shape(list(leaf.shape)), ov.Type.bf16)
    return ov.Tensor(leaf.numpy(), shared_memory=True)


class _Layer:
    """One node of the runtime model: kind, names of what was fused into it, kernel precision."""

    def __init__(self, node: Any) -> None:
        info = _runtime_info(node)
        self.node, self.kind = node, info["layerType"]
        full = info["originalLayersNames"].split(",")
        self.names = list(dict.fromkeys([*full, *(n.partition("/")[0] for n in full)]))
        # Small products are compiled into a subgraph with their neighbours.
        self.matrix = self.kind in MATRIX_LAYERS or (
            self.kind == "Subgraph" and any(n.rpartition("/")[2] in MATRIX_LAYERS for n in full)
        )
        # A layer's own precision is that of its weights where those are compressed.
        kernel = _name(info["primitiveType"].rpartition("_")[2].lower())
        known = kernel in PRECISIONS.values()
        self.precision = kernel if known else _name(info["runtimePrecision"])

    def weight(self) -> str | None:
        """The type a weight is held in: a product's second input, a gather's table."""
        index = 1 if self.kind in MATRIX_LAYERS else 0 if self.kind == "Gather" else None
        if index is None or self.node.get_input_size() <= index:
            return None
        source = self.node.input_value(index).get_node()
        return _name(_runtime_info(source)["runtimePrecision"]) if _is_constant(source) else None


def _is_constant(node: Any) -> bool:
    """Whether a node depends on constants alone, so that it was computed once, when compiling."""
    if node.get_input_size() == 0:
        return _runtime_info(node)["layerType"] == "Const"
    return all(_is_constant(node.input_value(i).get_node()) for i in range(node.get_input_size()))


def _runtime_info(node: Any) -> dict[str, str]:
    info = node.get_rt_info()
    keys = ("layerType", "originalLayersNames", "primitiveType", "runtimePrecision")
    return {k: info[k].astype(str) if k in info else "" for k in keys}


def _has_bf16(asked: dict[str, Asked]) -> bool:
    return any(a.dtype == "bfloat16" and a.product for a in asked.values())


def _reason(e: BaseException) -> str:
    """The line of an OpenVINO error that says what is wrong."""
    lines = [line.strip() for line in str(e).splitlines() if line.strip()]
    telling = [
        x for x in lines if "No conversion rule" in x or "not supported" in x or "Summary" in x
    ]
    return (telling or lines or [type(e).__name__])[0]
