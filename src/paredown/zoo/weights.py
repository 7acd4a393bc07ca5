"""Released weights into our networks: by name, by shape, and by nothing else.

``layouts`` says which public layouts an architecture has; ``names`` gives the mapping itself. No
file is downloaded and no pickle is opened.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from torch import Tensor, nn

from paredown.errors import InputError, UnknownName
from paredown.nn.pooled import PooledBottleneck

# Class of the network (see `_kind`) -> layout -> module:function of its pairs. The first layout is
# tried first.
LAYOUTS: dict[str, dict[str, str]] = {
    "ResNet": {"torchvision": "_layouts_convnets:resnet", "timm": "_layouts_convnets:resnet"},
    "PooledResNet": {"authors": "_layouts_kernels:pooled_resnet"},
    "PooledViT": {"authors": "_layouts_kernels:pooled_vit"},
    "DenseNet": {
        "torchvision": "_layouts_convnets:densenet",
        "timm": "_layouts_convnets:densenet",
    },
    "RegNetX": {"timm": "_layouts_convnets:regnet_timm"},
    "VoVNet": {"timm": "_layouts_convnets:vovnet_timm"},
    "MobileNetV1": {"timm": "_layouts_convnets:mobilenetv1_timm"},
    "MobileNetV2": {"torchvision": "_layouts_convnets:mobilenetv2_torchvision"},
    "MobileNetV3": {"torchvision": "_layouts_convnets:mobilenetv3_torchvision"},
    "EfficientNet": {"torchvision": "_layouts_convnets:efficientnet_torchvision"},
    "ConvNeXt": {
        "torchvision": "_layouts_convnets:convnext_torchvision",
        "timm": "_layouts_convnets:convnext_timm",
        "authors": "_layouts_convnets:convnext_authors",
    },
    "GhostNetV2": {"timm": "_layouts_timm:ghostnetv2"},
    "InceptionNeXt": {"timm": "_layouts_timm:inceptionnext"},
    "Inception": {"timm": "_layouts_timm:inception"},
    "NASNet": {"timm": "_layouts_timm:nasnet"},
    "ConViT": {"timm": "_layouts_timm:convit"},
    "UniRepLKNet": {"authors": "_layouts_kernels:unireplknet"},
    "OverLoCK": {"authors": "_layouts_kernels:overlock"},
    "FFNet": {"authors": "_layouts_kernels:ffnet"},
    "SimpleNet": {"authors": "_layouts_kernels:simplenet"},
    "FasterNet": {"timm": "_layouts_convnets:fasternet_timm"},
    "ViT": {"timm": "_layouts_transformers:vit"},
    "Swin": {
        "torchvision": "_layouts_transformers:swin_torchvision",
        "timm": "_layouts_transformers:swin_timm",
    },
    "MlpMixer": {"timm": "_layouts_transformers:mixer"},
    "NiNformer": {"authors": "_layouts_tokens:ninformer"},
    "P3DResNet": {"port": "_layouts_volumes:p3d_port"},
    "DiT": {"authors": "_layouts_transformers:dit"},
    "SVT": {"authors": "_layouts_hybrids:svt"},
    "DRCT": {"authors": "_layouts_hybrids:drct"},
    "DiCo": {"authors": "_layouts_hybrids:dico"},
    "LeYOLO": {"authors": "_layouts_hybrids:leyolo"},
    "ViTok": {"authors": "_layouts_tokenizers:vitok"},
    "SdVae": {"diffusers": "_layouts_tokenizers:sd_vae"},
}
# What public files hold beside the weights: made anew here, or only counted while training.
LEFT_OUT = ("relative_position_index", "attn_mask", "num_batches_tracked")
# The wavelet filters that SVT's layers keep: xfm.h0o, ifm.g1b and so on.
WAVELETS = tuple(f"fm.{k}{b}{c}" for k in "hg" for b in "01" for c in "oab")
FIXED = {"DiT": ("pos_embed",), "SVT": WAVELETS, "LeYOLO": ("dfl.conv.weight",)}


def layouts(model: nn.Module) -> list[str]:
    """The layouts of weight files that a network takes; ``paredown`` is its own names."""
    return ["paredown", *LAYOUTS.get(_kind(model), {})]


def names(model: nn.Module, layout: str) -> dict[str, str]:
    """Our tensor name -> theirs, for every tensor of a network. Raises ``UnknownName``."""
    ours = list(model.state_dict())
    if layout == "paredown":
        return {k: k for k in ours}
    known = LAYOUTS.get(_kind(model), {})
    if layout not in known:
        raise UnknownName(f"layout of {type(model).__name__}", layout, layouts(model))
    module, _, function = known[layout].partition(":")
    pairs: Callable[[nn.Module], Iterator[tuple[str, str]]] = getattr(
        importlib.import_module(f"paredown.zoo.{module}"), function
    )
    # The longest of our names decides, so an exception may stand beside a whole block.
    found = sorted(pairs(model), key=lambda p: -len(p[0]))
    return {k: _renamed(k, found) for k in ours}


def load_weights(
    model: nn.Module, weights: str | Path | Mapping[str, Tensor], *, layout: str | None = None
) -> nn.Module:
    """Fill a network with released weights, in place; returns it.

    ``weights`` is a safetensors file or a state dict; ``layout`` one of :func:`layouts` (None: the
    one that knows most of the names). Shapes must agree but for sizes of one, as a 1x1 convolution
    holds the same numbers as a linear map. A head of other classes, or any other tensor that does
    not fit: ``InputError`` naming the first and its shape, and nothing is loaded.
    """
    said = "the state dict" if isinstance(weights, Mapping) else str(weights)
    given = dict(weights) if isinstance(weights, Mapping) else _read(Path(weights))
    fixed = FIXED.get(type(model).__name__, ())
    given = {k: v for k, v in given.items() if not k.endswith((*LEFT_OUT, *fixed))}
    mapping = names(model, layout) if layout is not None else _nearest(model, given)
    state, loaded = model.state_dict(), dict[str, Tensor]()
    for ours, tensor in state.items():
        if ours.endswith(LEFT_OUT):
            continue
        theirs = mapping[ours]
        need = tuple(tensor.shape)
        if theirs not in given:
            raise InputError(f"{said} has no {theirs} {need}, which {ours} needs")
        found = given.pop(theirs)
        if not _same(tuple(found.shape), need):
            raise InputError(
                f"{said}: {theirs} is {tuple(found.shape)}, the network's {ours} is {need}"
            )
        loaded[ours] = found.reshape(need)
    for theirs, extra in given.items():
        raise InputError(f"{said} holds {theirs} {tuple(extra.shape)}: the network has no such")
    model.load_state_dict(loaded, strict=False)
    return model


def _kind(model: nn.Module) -> str:
    """The class, but for ResNets of pooled blocks, which were released in another layout."""
    name = type(model).__name__
    pooled = any(isinstance(m, PooledBottleneck) for m in model.modules())
    return "PooledResNet" if pooled and name == "ResNet" else name


def _nearest(model: nn.Module, given: Mapping[str, Tensor]) -> dict[str, str]:
    found = [names(model, layout) for layout in layouts(model)]
    return max(found, key=lambda m: sum(v in given for v in m.values()))


def _read(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if path.suffix != ".safetensors":
        raise InputError(
            f"{path}: weights are read from .safetensors; convert a .pth once with "
            "safetensors.torch.save_file(torch.load(FILE, weights_only=True), OUT)"
        )
    try:
        return load_file(path)
    except (OSError, SafetensorError) as e:
        raise InputError(f"{path} cannot be read: {e}") from None


def _renamed(key: str, pairs: list[tuple[str, str]]) -> str:
    for ours, theirs in pairs:
        if key == ours or key.startswith(f"{ours}."):
            return theirs + key[len(ours) :]
    raise AssertionError(f"the layout has no name for {key}")


def _same(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return [n for n in a if n != 1] == [n for n in b if n != 1]
