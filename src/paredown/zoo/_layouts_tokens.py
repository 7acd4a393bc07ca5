"""Names of released tensors of NiNformer: pairs of our module and theirs."""

from __future__ import annotations

from paredown.zoo._layouts_convnets import Pairs
from paredown.zoo.ninformer import NiNformer


def ninformer(model: NiNformer) -> Pairs:
    """The authors: ``patcher``, ``model.0.mgu.Mixer.token_mix.2.net.0``, ``classifier``."""
    yield "embed.proj", "patcher"
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}", f"model.{i}"
        mixer = f"{theirs}.mgu.Mixer"
        yield f"{ours}.gate.norm1", f"{mixer}.token_mix.0"
        yield f"{ours}.gate.norm2", f"{mixer}.channel_mix.0"
        for mlp, at in (
            ("gate.token_mlp", f"{mixer}.token_mix.2"),
            ("gate.channel_mlp", f"{mixer}.channel_mix.1"),
            ("mlp", f"{theirs}.ffn"),
        ):
            yield f"{ours}.{mlp}.fc1", f"{at}.net.0"
            yield f"{ours}.{mlp}.fc2", f"{at}.net.3"
        yield f"{ours}.proj", f"{theirs}.mgu.proj"
        yield f"{ours}.norm", f"{theirs}.norm"
    yield "head", "classifier"
