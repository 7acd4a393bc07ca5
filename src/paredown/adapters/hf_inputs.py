"""Example inputs for a Hugging Face model, from its configuration and the signature of
its forward.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paredown.errors import TargetError

TEXT_LENGTH = 128
"""Tokens of an example text where the configuration allows as many."""

AUDIO_SAMPLES = 16_000
"""One second of raw audio at 16 kHz."""

# Published evaluation sizes of families whose configuration does not state one.
_SIZES: dict[str, tuple[int, int]] = {
    "detr": (800, 1066),
    "conditional_detr": (800, 1066),
    "deformable_detr": (800, 1066),
    "dab-detr": (800, 1066),
    "rt_detr": (640, 640),
    "rt_detr_v2": (640, 640),
    "d_fine": (640, 640),
    "yolos": (512, 864),
    "segformer": (512, 512),
    "maskformer": (512, 512),
    "mask2former": (384, 384),
    "oneformer": (512, 512),
    "upernet": (512, 512),
    "sam": (1024, 1024),
}


def example_inputs(
    model: nn.Module, *, folder: Path | None = None, batch: int = 1, length: int | None = None
) -> dict[str, Any]:
    """Keyword inputs of one forward call, zeros and small random numbers on the CPU.

    Shapes: ``pixel_values (batch, channels, height, width)``, ``input_ids (batch, length)``,
    ``input_values (batch, samples)``, ``input_features (batch, mel, frames)``. Raises
    ``TargetError`` for a model whose main input has no known form.
    """
    config: Any = model.config
    accepted = set(inspect.signature(model.forward).parameters)
    main = getattr(model, "main_input_name", "input_ids")
    wanted = [main, *(n for n in ("input_ids", "pixel_values") if n in accepted and _both(config))]
    made: dict[str, Any] = {}
    for name in dict.fromkeys(wanted):
        if name not in _MAKERS:
            raise TargetError(
                f"no example input is known for {type(model).__name__} ({name}): write a file with "
                "a Workload and pass that"
            )
        made[name] = _MAKERS[name](config, folder, batch, length)
    if "input_ids" in made and "attention_mask" in accepted:
        made["attention_mask"] = torch.ones_like(made["input_ids"])
    if _decodes(config) and "decoder_input_ids" in accepted:
        made["decoder_input_ids"] = _ids(config, folder, batch, length)
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    return {k: v.to(dtype) if v.is_floating_point() else v for k, v in made.items()}


def _both(config: Any) -> bool:
    """Whether a model reads images and text at once (contrastive models)."""
    return hasattr(config, "vision_config") and hasattr(config, "text_config")


def _decodes(config: Any) -> bool:
    return bool(getattr(config, "is_encoder_decoder", False))


def _first(config: Any, *names: str) -> Any:
    """The first of several settings that a configuration, or its vision or text part, states."""
    parts = (
        config,
        *(
            getattr(config, n, None)
            for n in ("vision_config", "text_config", "encoder", "backbone_config", "audio_config")
        ),
    )
    for part in parts:
        for name in names:
            value = getattr(part, name, None) if part is not None else None
            if value is not None:
                return value
    return None


def _ids(config: Any, folder: Path | None, batch: int, length: int | None) -> torch.Tensor:
    longest = _first(
        config, "max_position_embeddings", "n_positions", "max_target_positions", "context_length"
    )
    text = getattr(config, "text_config", None)
    if text is not None and getattr(text, "max_position_embeddings", None):
        longest = text.max_position_embeddings
    n = length or TEXT_LENGTH
    if isinstance(longest, int) and longest > 0:
        n = min(n, longest)
    vocabulary = int(_first(config, "vocab_size") or 1000)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(min(10, vocabulary - 1), vocabulary, (batch, n), generator=generator)


def _image_size(config: Any, folder: Path | None) -> tuple[int, int]:
    size = _first(config, "image_size", "input_size")
    if size is None and folder is not None and (folder / "preprocessor_config.json").is_file():
        size = _processor_size(folder / "preprocessor_config.json")
    if isinstance(size, dict):
        size = (size["height"], size["width"]) if "height" in size else None
    if isinstance(size, int):
        return size, size
    if isinstance(size, (list, tuple)) and len(size) >= 2:
        return int(size[-2]), int(size[-1])
    return _SIZES.get(getattr(config, "model_type", ""), (224, 224))


def _processor_size(file: Path) -> Any:
    raw = json.loads(file.read_text())
    for key in ("crop_size", "size"):
        value = raw.get(key)
        if isinstance(value, int):
            return value
        if isinstance(value, dict):
            if "height" in value:
                return value
            if "shortest_edge" in value and "longest_edge" not in value:
                return value["shortest_edge"]
    return None


def _pixels(config: Any, folder: Path | None, batch: int, length: int | None) -> torch.Tensor:
    height, width = _image_size(config, folder)
    channels = int(_first(config, "num_channels") or 3)
    frames = getattr(config, "num_frames", None)
    shape = (batch, channels, height, width)
    if isinstance(frames, int) and getattr(config, "model_type", "") in _VIDEO:
        shape = (batch, frames, channels, height, width)
    return _noise(shape)


_VIDEO = ("videomae", "timesformer", "vivit", "vjepa2")


def _waveform(config: Any, folder: Path | None, batch: int, length: int | None) -> torch.Tensor:
    bins = getattr(config, "num_mel_bins", None)
    if isinstance(bins, int) and hasattr(config, "max_length") and hasattr(config, "patch_size"):
        return _noise((batch, int(config.max_length), bins))  # a spectrogram, not a waveform
    return _noise((batch, length or AUDIO_SAMPLES))


def _features(config: Any, folder: Path | None, batch: int, length: int | None) -> torch.Tensor:
    bins = int(_first(config, "num_mel_bins", "feat_extract_input_dim") or 80)
    positions = getattr(config, "max_source_positions", None)
    if getattr(config, "model_type", "") == "whisper" and isinstance(positions, int):
        return _noise((batch, bins, 2 * positions))
    return _noise((batch, length or 1024, bins))


def _perceiver(config: Any, folder: Path | None, batch: int, length: int | None) -> torch.Tensor:
    """Text, or pixels where the architecture names an image preprocessor."""
    kinds = " ".join(config.architectures or ())
    if "Image" in kinds:
        side = 224
        return _noise((batch, 3, side, side))
    n = length or int(config.max_position_embeddings)
    return torch.full((batch, n), 10, dtype=torch.int64)


def _noise(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


_MAKERS: dict[str, Callable[[Any, Path | None, int, int | None], torch.Tensor]] = {
    "input_ids": _ids,
    "pixel_values": _pixels,
    "input_values": _waveform,
    "input_features": _features,
    "inputs": _perceiver,
}
