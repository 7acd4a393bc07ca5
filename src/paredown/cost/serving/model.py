"""What a language model stores and computes per token: KV cache by attention type, active weights.

Insights into DeepSeek-V3 (Zhao et al. 2025, arXiv:2505.09343), tables 1 and 2: bytes of KV cache
per token of latent (MLA) and grouped-query attention, and training FLOPs per token. Norms, biases
and rotary embeddings are left out: under 0.1 % of the weights of any model of the catalogue.
"""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from paredown.errors import InputError, UnknownName

CATALOGUE = Path(__file__).with_name("catalogue")


class Latent(BaseModel):
    """Multi-head latent attention: the cache keeps ``kv_rank + rope_dim`` values per layer.

    ``query_rank`` 0 means that queries are projected at once.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    kv_rank: int = Field(gt=0)
    rope_dim: int = Field(gt=0)
    nope_dim: int = Field(gt=0)
    value_dim: int = Field(gt=0)
    query_rank: int = Field(default=0, ge=0)


class Experts(BaseModel):
    """Mixture of experts: ``active`` of ``routed`` experts and all ``shared`` ones see a token.

    The first ``dense_layers`` layers have one MLP instead. Routing takes experts of at most
    ``limit`` of ``groups`` groups (0: of any).
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    routed: int = Field(gt=0)
    active: int = Field(gt=0)
    width: int = Field(gt=0)
    shared: int = Field(default=0, ge=0)
    dense_layers: int = Field(default=0, ge=0)
    groups: int = Field(default=1, gt=0)
    limit: int = Field(default=0, ge=0)


class LanguageModel(BaseModel):
    """A decoder: ``width`` is that of its (dense) MLP, which is gated (three matrices) or not.

    ``head_dim`` and ``kv_heads`` count for attention without `latent` only.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    title: str
    layers: int = Field(gt=0)
    hidden: int = Field(gt=0)
    vocabulary: int = Field(gt=0)
    heads: int = Field(gt=0)
    kv_heads: int = Field(gt=0)
    head_dim: int = Field(gt=0)
    width: int = Field(gt=0)
    gated: bool = True
    tied: bool = False
    latent: Latent | None = None
    experts: Experts | None = None
    sources: dict[str, str] = {}

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.heads % self.kv_heads:
            raise ValueError(f"{self.heads} heads do not share {self.kv_heads} KV heads evenly")
        e = self.experts
        if e is not None:
            if e.active > e.routed:
                raise ValueError(f"{e.active} active experts of {e.routed}")
            if e.dense_layers > self.layers or e.routed % e.groups or e.limit > e.groups:
                raise ValueError("dense layers, groups and limit of the experts do not fit")
        return self

    @property
    def query_dim(self) -> int:
        """Values of one head's query and key."""
        return self.latent.nope_dim + self.latent.rope_dim if self.latent else self.head_dim

    @property
    def value_dim(self) -> int:
        """Values of one head's value."""
        return self.latent.value_dim if self.latent else self.head_dim

    @property
    def cached_per_layer(self) -> int:
        """Values that one layer's KV cache keeps of a token."""
        if self.latent:
            return self.latent.kv_rank + self.latent.rope_dim
        return 2 * self.kv_heads * self.head_dim

    def kv_bytes(self, bits: float = 16) -> float:
        """Bytes of KV cache per token (table 1: 16 bits)."""
        return self.layers * self.cached_per_layer * bits / 8

    @property
    def attention_weights(self) -> int:
        """Weights of one layer's attention."""
        h, out = self.hidden, self.heads * self.value_dim * self.hidden
        queries = self.heads * self.query_dim
        if self.latent is None:
            return h * (queries + 2 * self.kv_heads * self.head_dim) + out
        m = self.latent
        asked = (h + queries) * m.query_rank if m.query_rank else h * queries
        down = h * (m.kv_rank + m.rope_dim)
        return asked + down + m.kv_rank * self.heads * (m.nope_dim + m.value_dim) + out

    def mlp_weights(self, *, active: bool) -> int:
        """Weights of the MLPs of all layers, of every expert or of those that see one token."""
        each = (3 if self.gated else 2) * self.hidden
        e = self.experts
        if e is None:
            return self.layers * each * self.width
        used = e.shared + (e.active if active else e.routed)
        sparse = self.layers - e.dense_layers
        dense = e.dense_layers * each * self.width
        return dense + sparse * (used * each * e.width + self.hidden * e.routed)

    @property
    def parameters(self) -> int:
        """All weights: embedding and head once where they are tied."""
        ends = self.vocabulary * self.hidden * (1 if self.tied else 2)
        return ends + self.layers * self.attention_weights + self.mlp_weights(active=False)

    @property
    def active_parameters(self) -> int:
        """Weights that multiply one token: the head, not the embedding, and its experts alone."""
        body = self.layers * self.attention_weights + self.mlp_weights(active=True)
        return body + self.vocabulary * self.hidden

    def attention_macs(self, context: int, *, absorbed: bool = False) -> int:
        """Multiply-accumulates of one new token's attention over ``context`` cached ones.

        ``absorbed``: latent attention in its decoding form, on the cached latents themselves.
        """
        width = self.query_dim + self.value_dim
        if absorbed and self.latent:
            width = 2 * self.latent.kv_rank + self.latent.rope_dim
        return self.layers * self.heads * width * context

    def training_flops(self, context: int) -> int:
        """FLOPs per token of a training step, forward and backward, causal (table 2: 4096).

        Six per active weight and per multiply-accumulate of attention over half the context.
        """
        return 6 * (self.active_parameters + self.attention_macs(context) // 2)

    def decode_macs(self, context: int) -> int:
        """Multiply-accumulates of one decoded token after ``context`` others."""
        return self.active_parameters + self.attention_macs(context, absorbed=True)


def names() -> list[str]:
    """Language models known by name."""
    return sorted(p.stem for p in CATALOGUE.glob("*.toml"))


def load(name_or_path: str | Path) -> LanguageModel:
    """A model by name, from a ``.toml`` file, or from a Hugging Face folder or ``config.json``.

    Raises ``UnknownName`` for none of these, ``InputError`` for a file that does not say enough.
    """
    text = str(name_or_path)
    path = CATALOGUE / f"{text}.toml"
    if not path.is_file():
        path = Path(text.removeprefix("hf:"))
        path = path / "config.json" if path.is_dir() else path
        if path.suffix not in (".toml", ".json"):
            raise UnknownName("language model", text, names())
    try:
        source = path.read_text(encoding="utf-8")
    except OSError as e:
        raise InputError(f"cannot read {path}: {(e.strerror or str(e)).lower()}") from None
    except UnicodeDecodeError:
        raise InputError(f"{path}: not a text file in UTF-8") from None
    try:
        if path.suffix == ".json":
            return read(json.loads(source), path.parent.name or path.stem)
        return LanguageModel.model_validate(tomllib.loads(source))
    except (tomllib.TOMLDecodeError, json.JSONDecodeError) as e:
        raise InputError(f"{path}: {e}") from None
    except ValidationError as e:
        first = e.errors()[0]
        where = ".".join(str(k) for k in first["loc"])
        raise InputError(f"{path}: {f'{where}: ' if where else ''}{first['msg'].lower()}") from None


def read(config: dict[str, Any], name: str) -> LanguageModel:
    """A model from a Hugging Face configuration of a Llama, Qwen, Mixtral or DeepSeek kind.

    Raises ``InputError`` naming the keys that are missing.
    """
    needed = ("hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size")
    missing = [k for k in (*needed, "vocab_size") if not isinstance(config.get(k), int)]
    if missing:
        raise InputError(f"{name}: its configuration lacks {', '.join(missing)}")
    heads, hidden = config["num_attention_heads"], config["hidden_size"]
    latent = None
    if config.get("kv_lora_rank"):
        latent = {
            "kv_rank": config["kv_lora_rank"],
            "rope_dim": config.get("qk_rope_head_dim", 64),
            "nope_dim": config.get("qk_nope_head_dim", 128),
            "value_dim": config.get("v_head_dim", 128),
            "query_rank": config.get("q_lora_rank") or 0,
        }
    routed = config.get("n_routed_experts") or config.get("num_local_experts")
    experts = None
    if routed:
        experts = {
            "routed": routed,
            "active": config.get("num_experts_per_tok", 2),
            "width": config.get("moe_intermediate_size") or config["intermediate_size"],
            "shared": config.get("n_shared_experts") or 0,
            "dense_layers": config.get("first_k_dense_replace") or 0,
            "groups": config.get("n_group") or 1,
            "limit": config.get("topk_group") or 0,
        }
    return LanguageModel.model_validate(
        {
            "name": name,
            "title": f"{name} ({config.get('model_type', 'config.json')})",
            "layers": config["num_hidden_layers"],
            "hidden": hidden,
            "vocabulary": config["vocab_size"],
            "heads": heads,
            "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or hidden // heads,
            "width": config["intermediate_size"],
            "tied": bool(config.get("tie_word_embeddings", False)),
            "latent": latent,
            "experts": experts,
            "sources": {"shape": "the configuration"},
        }
    )
