"""A call with another batch than the one an ONNX file fixes: cut into pieces, put together."""

from __future__ import annotations

import torch

from paredown.errors import InputError


def part(
    given: dict[str, torch.Tensor], start: int, batch: int, count: int
) -> dict[str, torch.Tensor]:
    """One piece of a call, padded with its last sample to the file's batch."""
    if batch == count:
        return given
    out: dict[str, torch.Tensor] = {}
    for name, t in given.items():
        cut = t[start : start + batch]
        lack = batch - cut.shape[0]
        pad = [cut[-1:].expand(lack, *cut.shape[1:])] if lack else []
        out[name] = torch.cat([cut, *pad])
    return out


def joined(pieces: list[list[torch.Tensor]], batch: int, count: int) -> list[torch.Tensor]:
    """The outputs of all pieces, those of the padding dropped."""
    out: list[torch.Tensor] = []
    for parts in zip(*pieces, strict=True):
        if not parts[0].ndim or parts[0].shape[0] != batch:
            raise InputError(f"an output mixes the batch: call the file with its batch of {batch}")
        out.append(torch.cat(parts)[:count])
    return out
