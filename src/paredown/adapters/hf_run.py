"""How a Hugging Face target is run, as its reference says: ``hf:F?run=generate,new_tokens=64``.

A reference holds everything that a child process or an artefact needs to build the workload again;
the command line's ``--run``, ``--prompt-tokens`` and ``--new-tokens`` are written into it.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from paredown.adapters.hf_inputs import TEXT_LENGTH, example_inputs
from paredown.errors import TargetError
from paredown.runs import Generate
from paredown.runs.huggingface import can_generate

RUNS = ("forward", "generate")
_COUNTS = ("prompt_tokens", "new_tokens", "batch")


@dataclass(frozen=True)
class Asked:
    """What a reference asks of one run; None where it leaves the choice."""

    run: str = "forward"
    prompt_tokens: int | None = None
    new_tokens: int | None = None
    batch: int | None = None

    def query(self) -> str:
        """The part of a reference after ``?``."""
        given = {k: v for k, v in vars(self).items() if v not in (None, "forward")}
        return ",".join(f"{k}={v}" for k, v in given.items())


def split(reference: str) -> tuple[str, Asked]:
    """Folder and run of ``hf:FOLDER?key=value,...``. Raises ``TargetError``."""
    folder, mark, query = reference.removeprefix("hf:").rpartition("?")
    if not mark or Path(folder + mark + query).is_dir():
        return reference.removeprefix("hf:"), Asked()
    found: dict[str, Any] = {}
    for pair in filter(None, query.split(",")):
        key, _, value = pair.partition("=")
        if key == "run":
            found[key] = value
        elif key in _COUNTS and value.isdigit() and int(value) > 0:
            found[key] = int(value)
        elif key in _COUNTS:
            raise TargetError(f"{reference}: {key} must be a whole number from 1, not {value!r}")
        else:
            known = ", ".join(("run", *_COUNTS))
            raise TargetError(f"{reference}: unknown setting {pair!r}; known: {known}")
    return folder, check(Asked(**found), reference)


def check(asked: Asked, reference: str) -> Asked:
    """Refuse runs that a Hugging Face target does not have, and settings that contradict."""
    if asked.run not in RUNS:
        raise TargetError(
            f"{reference}: a Hugging Face target runs {' or '.join(RUNS)}, not {asked.run!r}; for "
            "other runs write a file with a Workload"
        )
    if asked.run != "generate" and (asked.prompt_tokens or asked.new_tokens):
        raise TargetError(f"{reference}: prompt and new tokens belong to run=generate")
    return asked


def inputs(
    model: nn.Module, folder: Path, asked: Asked, length: int | None = None
) -> dict[str, Any]:
    """Example inputs of one run. Raises ``TargetError`` for a model that cannot generate."""
    batch = asked.batch or 1
    if asked.run == "forward":
        return example_inputs(model, folder=folder, batch=batch, length=length)
    config: Any = model.config
    if not can_generate(model):
        raise TargetError(
            f"{folder}: {type(model).__name__} cannot generate: it has no language-modelling head "
            "(architectures in config.json names the class)"
        )
    new, prompt = asked.new_tokens or Generate().new_tokens, asked.prompt_tokens or TEXT_LENGTH
    made = example_inputs(model, folder=folder, batch=batch, length=prompt)
    made.pop("attention_mask", None)  # no padding: every position is read
    read = 1 if config.is_encoder_decoder else made["input_ids"].shape[-1]
    longest = getattr(config, "max_position_embeddings", None) or getattr(
        config, "max_target_positions", None
    )
    if asked.prompt_tokens and not config.is_encoder_decoder:
        read = asked.prompt_tokens
    if isinstance(longest, int) and read + new > longest:
        if asked.prompt_tokens or config.is_encoder_decoder or new >= longest:
            raise TargetError(
                f"{folder}: {read} prompt and {new} new tokens exceed the model's {longest} "
                "positions"
            )
        made["input_ids"] = made["input_ids"][:, : longest - new]
    if config.is_encoder_decoder:
        made["decoder_input_ids"] = torch.full((batch, 1), _start(config), dtype=torch.int64)
    return made


def loop(asked: Asked) -> Generate | None:
    """The loop around the model, None for forward runs."""
    if asked.run == "forward":
        return None
    return Generate(asked.new_tokens) if asked.new_tokens else Generate()


def _start(config: Any) -> int:
    """The token that an encoder-decoder's decoder begins with."""
    for name in ("decoder_start_token_id", "bos_token_id", "pad_token_id"):
        value = getattr(config, name, None)
        if isinstance(value, int):
            return value
    return 0
