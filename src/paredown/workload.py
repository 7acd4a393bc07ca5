"""A model with what is needed to run and judge it. The caller's model is never changed."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from numpy.typing import NDArray
from torch import nn

from paredown.errors import InputError
from paredown.runs import Generate, Loop
from paredown.runs.loop import After, nothing

Run = Literal["forward", "generate", "stream", "sample", "train_step"]
Scores = float | Sequence[float] | NDArray[Any] | torch.Tensor
Evaluate = Callable[[nn.Module], Scores]


@dataclass(frozen=True)
class TrainingData:
    """What recovery may train on: ``batches()`` yields ``(inputs, target)`` anew for each epoch.

    ``inputs`` is a tuple of tensors for the model; ``target`` goes to ``loss(output, target)``,
    which returns a scalar tensor. Without ``loss`` only distillation from the original is used.
    ``teacher`` is a network of the same inputs and outputs to distil from in the original's place.
    """

    batches: Callable[[], Iterable[tuple[tuple[Any, ...], Any]]]
    loss: Callable[[Any, Any], torch.Tensor] | None = None
    teacher: nn.Module | None = None


@dataclass(frozen=True)
class TargetRef:
    """Where a target came from, so that a child process or a later load can build it again.

    ``ref`` is the text the user gave (``file.py:name``, ``hf:FOLDER`` ...); ``sha256`` is of the
    file that defines it, None when there is none (``zoo:``).
    """

    ref: str
    sha256: str | None = None
    random_weights: bool = False


@dataclass
class Workload:
    """A model, example inputs and, optionally, data and judges.

    ``inputs`` are the positional example inputs (they fix batch, lengths and dtypes), ``kwargs``
    the keyword ones. ``calibration`` is a sequence of ``(args, kwargs)``-like items: a tensor, a
    tuple or a dict each. ``run`` says what one run is; ``generate``, ``stream`` and ``sample`` are
    loops around the model, which ``loop`` describes. ``evaluate(model)`` guides a search and
    ``verify(model)`` decides its verdict, on other examples; both return a float or one score per
    example, higher is better, on a scale of ``scale`` (1 or 100; None when unknown).
    """

    model: nn.Module
    inputs: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)
    run: Run = "forward"
    loop: Loop | None = None
    """How often and on what a run calls the model: `Generate`, `Stream` or `Sample`."""
    name: str = "model"
    calibration: Sequence[Any] | None = None
    evaluate: Evaluate | None = None
    verify: Evaluate | None = None
    training: TrainingData | None = None
    population: Sequence[Any] | None = None
    """Inputs as use brings them, in their order, items as in ``calibration`` (which stands in when
    left out): what a cost that depends on the input is measured and priced over."""
    scale: float | None = None
    source: TargetRef | None = None
    carry: tuple[str, ...] = ()
    """Files beside the model that an artefact takes along (tokenizers, processors)."""
    aliases: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Original module path -> the paths it lives at now; a path not listed still stands."""
    original: nn.Module | None = None
    """The model as the user gave it, once a recipe runs: a recovery's teacher. Not for edits."""

    def __post_init__(self) -> None:
        if self.loop is not None and self.run == "forward":
            self.run = self.loop.run  # type: ignore[assignment]
        if self.loop is None and self.run == "generate":
            self.loop = Generate()
        asked = None if self.loop is None else self.loop.run
        if self.run in ("generate", "stream", "sample") and asked is None:
            raise InputError(
                f"{self.name}: run={self.run!r} needs loop={self.run.title()}(...), which says how"
            )
        if asked not in (None, self.run):
            raise InputError(
                f"{self.name}: run={self.run!r} and loop={type(self.loop).__name__} contradict"
            )

    def copy(self) -> Workload:
        """A workload whose model may be rewritten freely: own modules, shared storages.

        Parameters and buffers of the copy are new tensor objects over the same storages, tied ones
        still tied. A rewrite replaces tensors, never writes into them (call :meth:`own` before
        training in place).
        """
        return replace(self, model=share(self.model), aliases=dict(self.aliases))

    def own(self) -> Workload:
        """A copy that owns its storages, for training in place."""
        return replace(self, model=copy.deepcopy(self.model), aliases=dict(self.aliases))

    def now(self, path: str) -> tuple[str, ...]:
        """The current module paths of an original module path."""
        return self.aliases.get(path, (path,))

    def calibration_inputs(self) -> Iterable[tuple[tuple[Any, ...], dict[str, Any]]]:
        """Calibration items as ``(args, kwargs)``; the example inputs when there are none."""
        if not self.calibration:
            yield self.inputs, self.kwargs
            return
        for item in self.calibration:
            yield as_call(item)

    def population_inputs(self) -> list[tuple[tuple[Any, ...], dict[str, Any]]]:
        """The population as ``(args, kwargs)``, in order; calibration's where there is none."""
        if self.population is None:
            return list(self.calibration_inputs())
        return [as_call(item) for item in self.population]

    def call(self) -> Any:
        """One run of the model on the example inputs, without autograd."""
        with torch.inference_mode():
            return self.once()

    def once(
        self,
        inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        *,
        call: Callable[..., Any] | None = None,
        after: After = nothing,
    ) -> Any:
        """One run on ``inputs`` (the example's), calling ``call`` in place of the model.

        ``after(i)`` is called once the ``i``-th call of the model in a loop is done.
        """
        args, kwargs = (self.inputs, self.kwargs) if inputs is None else inputs
        if self.loop is None:
            return (self.model if call is None else call)(*args, **kwargs)
        return self.loop.once(self.model, args, kwargs, call=call, after=after)

    def judged(
        self,
        inputs: tuple[tuple[Any, ...], dict[str, Any]] | None = None,
        *,
        call: Callable[..., Any] | None = None,
        like: Any = None,
    ) -> Any:
        """What a run is compared by: its output, or the logits along the tokens of ``like``."""
        args, kwargs = (self.inputs, self.kwargs) if inputs is None else inputs
        if self.loop is None:
            return (self.model if call is None else call)(*args, **kwargs)
        return self.loop.judged(self.model, args, kwargs, call=call, like=like)


def as_call(item: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """A data item as a call: a mapping is keywords, a tuple or list positions, else one."""
    if isinstance(item, Mapping):
        return (), dict(item)
    if isinstance(item, (tuple, list)):
        return tuple(item), {}
    return (item,), {}


def stored_bytes(model: nn.Module) -> int:
    """Bytes of a model's safetensors: its state, tied weights once; of an ONNX file, its own."""
    own = getattr(model, "stored_bytes", None)
    if own is not None:
        return own()
    held = {t.untyped_storage().data_ptr() or id(t): t for t in model.state_dict().values()}
    return sum(t.numel() * t.element_size() for t in held.values())


def share(model: nn.Module) -> nn.Module:
    """A deep copy of the modules whose parameters and buffers share the original's storages."""
    memo: dict[int, Any] = {}
    for p in model.parameters():
        memo[id(p)] = nn.Parameter(p.detach(), requires_grad=p.requires_grad)
    for b in model.buffers():
        memo.setdefault(id(b), b.detach())
    return copy.deepcopy(model, memo)
