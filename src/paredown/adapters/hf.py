"""Hugging Face folders as workloads: a config builds the model, safetensors fill it.

Nothing of the folder is executed: pickled weights and remote code are refused, naming the safe way.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paredown.adapters import hf_run
from paredown.errors import MissingExtra, TargetError
from paredown.workload import TargetRef, Workload

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".msgpack", ".h5")
CARRIED = (
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
    "image_processor_config.json",
    "feature_extractor_config.json",
    "chat_template.json",
    "chat_template.jinja",
    "generation_config.json",
)
"""Files beside the model that an artefact takes along."""


def hf_workload(
    folder: str | Path,
    random_weights: bool = False,
    *,
    length: int | None = None,
    asked: hf_run.Asked | None = None,
) -> Workload:
    """Build a workload from a Hugging Face folder, run as ``asked`` (one forward call).

    With ``random_weights`` a ``config.json`` is enough; a model that would not fit in a third of
    free memory then stays on ``meta`` (it can be profiled, not run). Raises ``TargetError`` for a
    folder without a readable config or safetensors, with pickled weights only, or with remote code.
    """
    path = Path(folder)
    config = load_config(path)
    model = build(config, path) if random_weights else load(path, config)
    asked = asked or hf_run.Asked()
    kwargs = hf_run.inputs(model, path, asked, length)
    digest = hashlib.sha256((path / "config.json").read_bytes()).hexdigest()
    return Workload(
        model.eval(),
        kwargs=kwargs,
        loop=hf_run.loop(asked),
        name=path.resolve().name,
        source=TargetRef(f"hf:{folder}", digest, random_weights),
        carry=tuple(str(path / f) for f in CARRIED if (path / f).is_file()),
    )


def load_config(folder: Path) -> Any:
    """Read a folder's configuration; remote code is refused before anything is imported."""
    transformers = _transformers()
    file = folder / "config.json"
    if not file.is_file():
        raise TargetError(f"{folder} holds no config.json: is it a Hugging Face model folder?")
    try:
        raw = json.loads(file.read_text())
    except (UnicodeDecodeError, json.JSONDecodeError) as e:
        raise TargetError(f"{file} is not valid JSON: {e}") from None
    if not isinstance(raw, dict):
        raise TargetError(f"{file} is not a JSON object")
    if "auto_map" in raw:
        raise TargetError(
            f"{file} asks for remote code (auto_map), which paredown never runs: load the model "
            "yourself in a file of your own and pass that file as the target"
        )
    try:
        return transformers.AutoConfig.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False
        )
    except (ValueError, KeyError, TypeError, OSError) as e:
        raise TargetError(f"{file}: {_first_line(e)}") from None


def model_class(config: Any) -> Any:
    """The class that ``architectures`` names, else the base model of the configuration."""
    transformers = _transformers()
    for name in config.architectures or ():
        cls = getattr(transformers, name, None)
        if isinstance(cls, type):
            return cls
    if config.architectures:
        raise TargetError(
            f"transformers {transformers.__version__} has no class {config.architectures[0]}"
        )
    return transformers.AutoModel


def build(config: Any, where: Any = "the configuration", *, meta: bool | None = None) -> nn.Module:
    """Build a model with random weights, on ``meta`` when asked or when it is too large."""
    with torch.device("meta"):
        model = _construct(config, where)
    if meta is None:
        from paredown.graph.capture import free_memory

        meta = 3 * sum(p.numel() * p.element_size() for p in model.parameters()) > free_memory()
    return model.eval() if meta else _construct(config, where).eval()


def _construct(config: Any, where: Any) -> nn.Module:
    cls = model_class(config)
    dtype = getattr(config, "dtype", None) or torch.float32
    try:
        make = cls.from_config if cls.__name__.startswith("Auto") else cls._from_config
        return make(config, dtype=dtype)
    except (ValueError, TypeError, AttributeError, RuntimeError, ImportError) as e:
        raise TargetError(f"{where}: {cls.__name__} cannot be built: {_first_line(e)}") from e


def load(folder: Path, config: Any) -> nn.Module:
    """Load a model from safetensors; pickled weights are refused, naming the conversion."""
    if not any(folder.glob("*.safetensors")):
        pickled = sorted(f.name for f in folder.iterdir() if f.suffix in PICKLED)
        if pickled:
            raise TargetError(
                f"{folder} holds pickled weights only ({pickled[0]}), which can run code when "
                "read: where you trust them, convert with "
                "AutoModel.from_pretrained(F).save_pretrained(F), which writes model.safetensors"
            )
        raise TargetError(f"{folder} holds no *.safetensors: pass --random-weights to go without")
    cls = model_class(config)
    try:
        return cls.from_pretrained(
            str(folder),
            config=config,
            use_safetensors=True,
            local_files_only=True,
            trust_remote_code=False,
            dtype="auto",
        )
    except Exception as e:
        # Truncated safetensors and mismatched shapes surface as several unrelated types.
        raise TargetError(f"{folder}: {cls.__name__} cannot be loaded: {_first_line(e)}") from e


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0]


def _transformers() -> Any:
    try:
        import transformers
    except ImportError:
        raise MissingExtra("transformers", "llm", "a Hugging Face target") from None
    return transformers
