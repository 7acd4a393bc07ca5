"""The networks of `benchmarks/predict.py` by family, untrained, and any target a user names."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from paredown.workload import Workload

Build = Callable[[int], Workload]
TOKENS, PAST = 128, 128
"""Tokens of an encoder's or a prompt's input; cached ones that a decode step attends to."""


def _zoo(name: str, *, image_size: int | None = None, **settings: Any) -> Build:
    def build(batch: int) -> Workload:
        from paredown import zoo

        torch.manual_seed(0)
        more = {} if image_size is None else {"image_size": image_size}
        return Workload(
            zoo.create(name, **settings).eval(), zoo.example(name, batch=batch, **more), name=name
        )

    return build


def _hf(cls: str, config: str, tokens: int = TOKENS, **settings: Any) -> Build:
    def build(batch: int) -> Workload:
        from paredown.adapters.hf_inputs import example_inputs

        model = _model(cls, config, settings)
        inputs = example_inputs(model, batch=batch, length=tokens)
        inputs.pop("attention_mask", None)  # no padding: every position is read
        inputs["return_dict"] = False
        if "use_cache" in model.config.to_dict():
            inputs["use_cache"] = False
        return Workload(model, kwargs=inputs, name=cls)

    return build


def _model(cls: str, config: str, settings: dict[str, Any]) -> Any:
    import transformers

    torch.manual_seed(0)
    made = getattr(transformers, config)(**settings)
    made._attn_implementation = "sdpa"
    return getattr(transformers, cls)(made).eval()


class Decode(nn.Module):
    """One decode step: a token for each sequence, keys and values of the past given and kept.

    ``keys`` and ``values`` are ``(layers, batch, heads, past, head width)``; logits come out, and
    the new keys and values, as a caller with a cache of its own takes them.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, ...]:
        """Logits ``(batch, 1, vocabulary)`` and the newest key and value of each layer."""
        from transformers import DynamicCache

        cache = DynamicCache()
        for i in range(keys.shape[0]):
            cache.update(keys[i], values[i], i)
        out = self.model(input_ids=ids, past_key_values=cache, use_cache=True, return_dict=True)
        layers = out.past_key_values.layers
        return out.logits, *(t[:, :, -1:] for n in layers for t in (n.keys, n.values))


def _decode(cls: str, config: str, **settings: Any) -> Build:
    def build(batch: int) -> Workload:
        model = _model(cls, config, settings)
        c = model.config
        heads = getattr(c, "num_key_value_heads", None) or c.num_attention_heads
        width = getattr(c, "head_dim", None) or c.hidden_size // c.num_attention_heads
        shape = (c.num_hidden_layers, batch, heads, PAST, width)
        ids = torch.full((batch, 1), 7)
        past = (torch.randn(shape), torch.randn(shape))
        return Workload(Decode(model).eval(), (ids, *past), name=f"{cls} decode")

    return build


class Recurrent(nn.Module):
    """Layers of an LSTM or GRU over ``(batch, steps, width)``, and a classifier of the last."""

    def __init__(self, kind: type[nn.LSTM | nn.GRU], width: int, layers: int) -> None:
        super().__init__()
        self.rnn = kind(width, width, layers, batch_first=True)
        self.head = nn.Linear(width, 1000)

    def forward(self, x: Tensor) -> Tensor:
        """Scores ``(batch, 1000)``."""
        return self.head(self.rnn(x)[0][:, -1])


def _recurrent(kind: type[nn.LSTM | nn.GRU], width: int, layers: int, steps: int) -> Build:
    def build(batch: int) -> Workload:
        torch.manual_seed(0)
        x = torch.randn(batch, steps, width)
        return Workload(Recurrent(kind, width, layers).eval(), (x,), name=kind.__name__.lower())

    return build


GPT2 = ("GPT2LMHeadModel", "GPT2Config")
OPT = ("OPTForCausalLM", "OPTConfig")
LLAMA = ("LlamaForCausalLM", "LlamaConfig")
SMALL_LLAMA: dict[str, Any] = {  # the sizes of SmolLM-135M, fewer layers
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 12,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "vocab_size": 49152,
}
HALF_GPT2 = {"n_layer": 6}
HALF_OPT = {"num_hidden_layers": 6, "word_embed_proj_dim": 768}

NETWORKS: dict[str, tuple[str, Build]] = {
    "mobilenetv2": ("mobile CNN", _zoo("mobilenetv2")),
    "mobilenetv3-large": ("mobile CNN", _zoo("mobilenetv3-large")),
    "efficientnet-b0": ("mobile CNN", _zoo("efficientnet-b0")),
    "resnet18": ("residual CNN", _zoo("resnet18")),
    "resnet50": ("residual CNN", _zoo("resnet50")),
    "regnetx-400mf": ("residual CNN", _zoo("regnetx-400mf")),
    "convnext-tiny": ("large-kernel CNN", _zoo("convnext-tiny")),
    "inceptionnext-atto": ("large-kernel CNN", _zoo("inceptionnext-atto")),
    "unireplknet-a-merged": ("large-kernel CNN", _zoo("unireplknet-a-merged")),
    "vit-ti": ("ViT", _zoo("vit-ti")),
    "vit-s": ("ViT", _zoo("vit-s")),
    "swin-tiny": ("window attention", _zoo("swin-tiny")),
    "swin-tiny-160": ("window attention", _zoo("swin-tiny", image_size=160)),
    "bert-base": ("encoder LM", _hf("BertForMaskedLM", "BertConfig", num_hidden_layers=6)),
    "distilbert": (
        "encoder LM",
        _hf("DistilBertForSequenceClassification", "DistilBertConfig"),
    ),
    "electra-small": ("encoder LM", _hf("ElectraForPreTraining", "ElectraConfig")),
    "gpt2-prefill": ("decoder prefill", _hf(*GPT2, **HALF_GPT2)),
    "opt-prefill": ("decoder prefill", _hf(*OPT, **HALF_OPT)),
    "llama-prefill": ("decoder prefill", _hf(*LLAMA, **SMALL_LLAMA)),
    "gpt2-decode": ("decoder decode", _decode(*GPT2, **HALF_GPT2)),
    "opt-decode": ("decoder decode", _decode(*OPT, **HALF_OPT)),
    "llama-decode": ("decoder decode", _decode(*LLAMA, **SMALL_LLAMA)),
    "unet-16": ("U-Net", _zoo("unet", image_size=256, width=16, padded=True)),
    "unet-32": ("U-Net", _zoo("unet", image_size=128, width=32, padded=True, norm=True)),
    "lstm": ("recurrent / state-space", _recurrent(nn.LSTM, 512, 2, 64)),
    "gru": ("recurrent / state-space", _recurrent(nn.GRU, 256, 2, 128)),
}
"""Name -> (family, what makes it at a batch)."""


def named(text: str) -> tuple[str, str, Build]:
    """Name, family and maker of a built-in network or of ``[FAMILY=]TARGET`` (``zoo:``, ``hf:``).

    An ``hf:`` folder needs no weights: random ones do. A target whose family is not given makes a
    family of its own.
    """
    if text in NETWORKS:
        return text, *NETWORKS[text]
    family, mark, target = text.partition("=")
    if not mark or family.startswith(("zoo:", "hf:")):
        family, target = text, text

    def build(batch: int) -> Workload:
        from dataclasses import replace

        from paredown.targets import resolve

        reference = target
        if target.startswith("hf:") and batch > 1:
            reference += ("," if "?" in target else "?") + f"batch={batch}"
        found = resolve(reference, random_weights=target.startswith("hf:"))
        if target.startswith("zoo:") and batch > 1:
            more = tuple(
                x.repeat(batch, *[1] * (x.dim() - 1)) if x.dim() else x for x in found.inputs
            )
            found = replace(found, inputs=more)
        return found

    return target, family, build
