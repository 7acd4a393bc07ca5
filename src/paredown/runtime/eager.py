"""Eager torch: the reference of every other backend, and the baseline of every ratio."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from paredown.errors import ArtefactError, InputError
from paredown.graph import varying
from paredown.graph.graph import Graph
from paredown.runtime import sparse_file, torch_lowering
from paredown.runtime.backend import Asked, Backend, Executable, Ran
from paredown.runtime.export import first_line
from paredown.runtime.observe import Observed, observe
from paredown.runtime.onnx_model import needs_torch
from paredown.workload import Workload

TENSORS = "tensors.safetensors"


class EagerExecutable(Executable):
    """The rewritten module in eval and inference mode, quantized layers on torch's operators.

    ``workload`` is the executable's own copy; its quantized forms are swapped for packed modules.
    """

    backend = "eager"

    def __init__(self, workload: Workload, threads: int) -> None:
        self.workload, self.threads, self.compile_s = workload, threads, 0.0
        self.model = workload.model
        self._unlowered = torch_lowering.lower(workload)
        self._observed: Observed | None = None
        self._laps: list[float] = []

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One run; it takes any shape that the model takes."""
        with torch.inference_mode():
            if self.workload.loop is None:
                return self.model(*args, **kwargs)
            return self._looped(self.model, args, kwargs)

    @property
    def laps(self) -> list[float]:
        """Seconds from the start of the last run to the end of each step of its loop."""
        return self._laps

    @property
    def varies(self) -> str | None:
        """What the first module that branches on its input says of it."""
        return varying.varies(self.model)

    def forget(self) -> None:
        """Empty every module's memory of earlier runs."""
        varying.forget(self.model)

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """One call of the module."""
        with torch.inference_mode():
            return self.model(*args, **kwargs)

    def _looped(self, call: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        laps: list[float] = []
        self._laps = laps
        start = time.perf_counter()

        def after(_: int) -> None:
            laps.append(time.perf_counter() - start)

        return self.workload.once((args, kwargs), call=call, after=after)

    @property
    def observed(self) -> Observed:
        """The operators of one real run, module by module (run on first use)."""
        if self._observed is None:
            self._observed = observe(self.workload, self._unlowered)
        return self._observed

    @property
    def asked(self) -> dict[str, Asked]:  # type: ignore[override]
        """What each module with a matrix product asks of the numbers."""
        return self.observed.asked

    def executed(self) -> list[Ran]:
        """The operators that really ran, by the dtypes they were given."""
        return self.observed.ran

    def save(self, folder: Path) -> list[Path]:
        """Write every parameter and buffer, non-persistent ones too, as safetensors."""
        folder.mkdir(parents=True, exist_ok=True)
        save_tensors(self.model, folder / TENSORS)
        return [Path(TENSORS)]

    def weight_bytes(self) -> int:
        """Bytes of all parameters and buffers, shared ones once, packed ones as packed."""
        return torch_lowering.held_bytes(self.model)


class Eager(Backend):
    """The ``eager`` backend."""

    name: ClassVar[str] = "eager"

    def available(self) -> str | None:
        """Always available: torch is a core dependency."""
        return None

    def supports(self, workload: Workload, graph: Graph | None) -> list[str]:
        """Everything that is a torch module and can be run as asked."""
        return [why] if (why := needs_torch(workload) or cannot_loop(workload)) else []

    def lower(self, workload: Workload, *, threads: int) -> EagerExecutable:
        """The workload's own copy; sets torch's thread count for this process."""
        set_threads(threads)
        own = workload.copy()
        own.model.eval()
        return EagerExecutable(own, threads)

    def load(
        self, folder: Path, *, threads: int, workload: Workload | None = None
    ) -> EagerExecutable:
        """Put the saved tensors into ``workload`` (its structure already rebuilt)."""
        if workload is None:
            raise InputError(f"{folder} runs in eager torch: name the source it was made from")
        own = workload.copy()
        load_tensors(own.model, folder / TENSORS)
        return self.lower(own, threads=threads)


def cannot_loop(workload: Workload) -> str | None:
    """Why the workload's loop cannot run its model, None when it can or there is none."""
    if workload.loop is None:
        return None
    return workload.loop.why_not(workload.model, workload.inputs, workload.kwargs)


def set_threads(threads: int) -> None:
    """Torch's threads inside an operator; refuses none."""
    if threads < 1:
        raise InputError(f"threads must be at least 1, got {threads}")
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)


def save_tensors(model: nn.Module, path: Path) -> None:
    """Parameters and buffers as safetensors; a tensor known under several names is written once,
    one with many zeros without them.
    """
    seen: dict[tuple[Any, ...], str] = {}
    tensors: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    spans: dict[int, list[tuple[int, int]]] = {}
    for name, t in torch_lowering.tensors(model):
        key = (
            t.untyped_storage().data_ptr(),
            t.storage_offset(),
            tuple(t.shape),
            t.stride(),
            t.dtype,
        )
        if t.numel() and key in seen:
            tied[name] = seen[key]
            continue
        seen[key] = name
        # Copied only where bytes would be written twice: a large model's do not fit twice.
        tensors[name] = t.detach().contiguous()
        if _overlaps(tensors[name], spans):
            tensors[name] = tensors[name].clone()
    sparse_file.save(tensors, path, {f"tied:{k}": v for k, v in tied.items()})


def _overlaps(t: torch.Tensor, spans: dict[int, list[tuple[int, int]]]) -> bool:
    """Whether a dense tensor shares bytes with one seen before; notes its own."""
    start = int(t.storage_offset()) * t.element_size()
    span = (start, start + int(t.nbytes))
    known = spans.setdefault(t.untyped_storage().data_ptr(), [])
    known.append(span)
    return any(a < span[1] and span[0] < b for a, b in known[:-1])


def load_tensors(model: nn.Module, path: Path) -> None:
    """Put saved tensors into the model in place of its own, by name; ties as they were.

    Raises ``ArtefactError`` for a tensor missing, left over, or of another shape or dtype.
    """
    from safetensors import SafetensorError

    try:
        with sparse_file.opened(path) as f:
            meta, tensors = f.metadata, f.tensors()
    except (OSError, ValueError, SafetensorError) as e:
        raise ArtefactError(f"{path} is not readable: {first_line(e)}") from None
    tied = {k.removeprefix("tied:"): v for k, v in meta.items() if k.startswith("tied:")}
    names = {name for name, _ in torch_lowering.tensors(model)}
    lack, extra = (
        sorted(names - set(tensors) - set(tied)),
        sorted((set(tensors) | set(tied)) - names),
    )
    if lack or extra:
        what = f"lacks {lack[0]!r}" if lack else f"holds an unknown {extra[0]!r}"
        raise ArtefactError(f"{path.name} {what}: was it saved from this model?")
    made: dict[str, Any] = {}
    for name, old in torch_lowering.tensors(model):
        source = tied.get(name, name)
        if source not in tensors:
            raise ArtefactError(f"{path.name} ties {name!r} to {source!r}, which it does not hold")
        new = tensors[source]
        if new.shape != old.shape or new.dtype != old.dtype:
            raise ArtefactError(
                f"{name!r} should be {list(old.shape)} {old.dtype}, "
                f"saved as {list(new.shape)} {new.dtype}"
            )
        _place(model, name, old, new, source, made)


def _place(
    model: nn.Module,
    name: str,
    old: torch.Tensor,
    new: torch.Tensor,
    source: str,
    made: dict[str, Any],
) -> None:
    path, _, leaf = name.rpartition(".")
    module = model.get_submodule(path)
    if isinstance(old, nn.Parameter):
        if source not in made:
            made[source] = nn.Parameter(new, requires_grad=old.requires_grad)
        module.register_parameter(leaf, made[source])
    else:
        module.register_buffer(
            leaf,
            made[source].data if source in made else new,
            persistent=leaf in module.state_dict(keep_vars=True),
        )
