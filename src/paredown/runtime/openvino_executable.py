"""A compiled OpenVINO model behind the original call, and what of it ran in which numbers."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from paredown.errors import LoweringError
from paredown.runtime import call_file
from paredown.runtime.backend import COMPUTE, Asked, Executable, Ran
from paredown.runtime.call import Call
from paredown.runtime.export import first_line
from paredown.runtime.openvino_layers import QUIET_LAYERS, Layer, runtime_info
from paredown.runtime.openvino_plugin import (
    TORCH_TYPES,
    compile_model,
    hints,
    quantizes_inside,
    shared_tensor,
)

CONVOLUTIONS = frozenset({"Convolution", "GroupConvolution"})
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
        self.compiled = compile_model(model, hints(self.precision, threads, self.dynamic))
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
                self._request.set_input_tensor(i, shared_tensor(alive[-1]))
        out: list[torch.Tensor] = []
        for i, (own, (shape, dtype)) in enumerate(zip(self._outputs, self._results, strict=True)):
            if own is None:
                own = torch.empty(shape, dtype=dtype)
                self._request.set_output_tensor(i, shared_tensor(own))
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
        bind(index, shared_tensor(buffer))
        return buffer

    def executed(self) -> list[Ran]:
        """Precision per layer from the plugin's runtime model, and weights as they are held."""
        layers = [Layer(n) for n in self.compiled.get_runtime_model().get_ordered_ops()]
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
        called = call_file.save(folder, self.call, self.asked, sites=self.sites)
        return [Path("model.xml"), Path("model.bin"), called]

    def weight_bytes(self) -> int:
        """Bytes of the constants of the compiled model, in the layout the plugin keeps them."""
        total = 0
        for node in self.compiled.get_runtime_model().get_ordered_ops():
            if runtime_info(node)["layerType"] == "Const":
                kind = node.get_output_element_type(0)
                total += (int(np.prod(list(node.get_output_shape(0)))) * kind.bitwidth + 7) // 8
        return total

    def _sites(self, layers: list[Layer]) -> list[list[str]]:
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

    def _precision(self, layer: Layer) -> str:
        """What a layer computes in.

        A product that quantizes its activations on the way still names a float kernel; whether this
        processor's plugin does that is found out by trying.
        """
        compressed = layer.matrix and layer.weight() in ("int8", "int4")
        if compressed and layer.precision == "float32" and self.dynamic:
            columns = int(layer.node.get_input_shape(0)[-1])
            return "int8" if quantizes_inside(columns) else layer.precision
        return layer.precision

    def _otherwise(self, site: str, kind: str, precision: str) -> str | None:
        asked = self.asked.get(site)
        if asked is not None and asked.weight and not asked.activation and kind in CONVOLUTIONS:
            return "the CPU plugin unpacks its weights as it compiles: fewer bytes on disk alone"
        if asked is None or precision == asked.compute:
            return None
        return f"asked for {asked.compute}, the CPU plugin ran it in {precision}"


def _has_bf16(asked: dict[str, Asked]) -> bool:
    return any(a.dtype == "bfloat16" and a.product for a in asked.values())
