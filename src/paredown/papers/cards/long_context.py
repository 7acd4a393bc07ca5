"""Claim card of AccLLM's compression (Liang et al. 2025, arXiv:2505.03745); not its accelerator."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from paredown.errors import MissingExtra
from paredown.figure import counted
from paredown.graph.capture import capture
from paredown.papers.card import Card, Check, Experiment, Progress, Scale, mean_and_power
from paredown.papers.cards import _text
from paredown.papers.cards._paired import Paired
from paredown.runtime.bounded_cache import cache, cache_bytes
from paredown.runtime.forms_two_of_four import TwoOfFourLinear
from paredown.techniques.quantize.accllm import AccLLM
from paredown.techniques.sparsify.one_shot import OneShotPruning
from paredown.workload import Workload

WIDTH, LAYERS, HEADS = 128, 2, 4
SINKS, WINDOW = 4, 48
WEIGHTS: dict[str, Any] = {
    "2:4": OneShotPruning(pattern="2:4"),
    "2:4, 2 bits": AccLLM(activations=False),
    "2:4, 2 bits, rows in int8": AccLLM(),
}


class Bytes(nn.Module):
    """A Llama of bytes, freshly initialised: ids ``(batch, tokens)`` to logits."""

    def __init__(self) -> None:
        super().__init__()
        try:
            from transformers import LlamaConfig, LlamaForCausalLM
        except ImportError:
            raise MissingExtra("transformers", "llm", "the card of accllm") from None
        config = LlamaConfig(
            vocab_size=_text.VOCABULARY,
            hidden_size=WIDTH,
            intermediate_size=2 * WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            max_position_embeddings=4 * _text.CONTEXT,
        )
        self.lm: Any = LlamaForCausalLM(config)

    def forward(self, ids: Tensor) -> Tensor:
        """Logits of the byte after each, no cache."""
        return self.lm(input_ids=ids, use_cache=False).logits


@torch.no_grad()
def decoded(model: Any, ids: Tensor, held: Any) -> Tensor:
    """Logits ``(batch, tokens, vocabulary)`` read one token at a time through a cache."""
    steps = [
        model.lm(input_ids=ids[:, i : i + 1], past_key_values=held, use_cache=True).logits
        for i in range(ids.shape[1])
    ]
    return torch.cat(steps, 1)


def scores(seed: int, steps: int, count: int) -> dict[str, float]:
    """Nats a byte of one decoder after every step; bytes of weights and caches; exactness."""
    from transformers import DynamicCache

    torch.set_num_threads(1)
    torch.manual_seed(seed)
    model = Bytes()
    _text.trained(model, "reference", steps, 16, 3e-3, seed)
    model.eval()
    found = {"float32": _text.held_out(model, "reference", count)}
    some = _text.windows("reference", "train")[:64, :-1]
    floats = Workload(model, (some[:1],), calibration=list(some.split(16)))
    graph = capture(floats)
    pared: Any = model
    for name, technique in WEIGHTS.items():
        sites = technique.sites(floats, graph).only(except_=["lm.lm_head"])
        pared = technique.apply(floats, sites).workload.model
        found[name] = _text.held_out(pared, "reference", count)
    forms = [m for m in pared.modules() if isinstance(m, TwoOfFourLinear)]
    held = sum(m.weight.nbytes + m.places.nbytes + m.low.nbytes + m.step.nbytes for m in forms)
    found["weights, float16 over held"] = (
        sum(2 * m.in_features * m.out_features for m in forms) / held
    )
    pairs = _text.windows("reference", "held-out")[: 2 * (count // 8)]
    ids = pairs.reshape(len(pairs) // 2, -1)
    past = _text.CONTEXT
    caches = {
        "full": DynamicCache(),
        "bounded": cache(SINKS, WINDOW, 0, LAYERS),
        "bounded, 4 bits": cache(SINKS, WINDOW, 4, LAYERS),
    }
    logits = {name: decoded(model, ids[:, :-1], c) for name, c in caches.items()}
    for name, y in logits.items():
        found[f"{name} cache, trained length"] = float(
            _text.nats(y[:, :past], ids[:, 1 : past + 1])
        )
        found[f"{name} cache, beyond"] = float(_text.nats(y[:, past:], ids[:, past + 1 :]))
    short = SINKS + WINDOW
    off = logits["full"][:, :short] - logits["bounded"][:, :short]
    found["off while all fits"] = float(off.abs().max())
    found["cache, float16 over held"] = (
        cache_bytes(caches["full"]) / 2 / cache_bytes(caches["bounded, 4 bits"])
    )
    y = decoded(pared, ids[:, :-1], cache(SINKS, WINDOW, 4, LAYERS))
    found["all, trained length"] = float(_text.nats(y[:, :past], ids[:, 1 : past + 1]))
    return found


class AccLLMCard(Card):
    """A trained byte Llama after each step: nats a byte, bytes of weights and of the cache."""

    key = "accllm"
    claim = (
        "2:4 sparse 2-bit weights, 8-bit rows and a 4-bit cache of sinks and a window keep a "
        "decoder's quality at a sixth of float16's memory and past the length it was trained on"
    )
    thresholds: ClassVar[dict[str, float]] = {
        "pruned_over_float": 0.05,
        "two_bits_over_float": 0.15,
        "all_over_full": 0.20,
        "cache_bits_over_bounded": 0.02,
        "bounded_over_full_beyond": 0.0,
        "weights_ratio": 6.0,
        "cache_ratio": 6.0,
        "off_while_all_fits": 1e-3,
    }

    def experiment(self, scale: Scale, progress: Progress) -> Experiment:
        """Text of the language reference, 64 bytes of context in training, 130 in decoding."""
        t, quick = self.thresholds, scale == "quick"
        seeds = range(4 if quick else 10)
        steps, count = (220, 256) if quick else (3000, 2048)
        by = Paired.run(scores, seeds, steps, count, progress=progress)

        def over(ours: str, theirs: str, key: str) -> Check:
            mean, half = mean_and_power(by.over(ours, theirs))
            return Check(f"nats over those of {theirs}, {ours}", mean, "<=", t[key], half)

        weights, kept = by["weights, float16 over held"][0], by["cache, float16 over held"][0]
        off = max(by["off while all fits"])
        checks = [
            over("2:4", "float32", "pruned_over_float"),
            over("2:4, 2 bits, rows in int8", "float32", "two_bits_over_float"),
            over("all, trained length", "full cache, trained length", "all_over_full"),
            over(
                "bounded, 4 bits cache, beyond", "bounded cache, beyond", "cache_bits_over_bounded"
            ),
            over("bounded cache, beyond", "full cache, beyond", "bounded_over_full_beyond"),
            Check("weight bytes, float16 over held", weights, ">=", t["weights_ratio"], unit="x"),
            Check(
                "cache bytes at 129 tokens, float16 over held",
                kept,
                ">=",
                t["cache_ratio"],
                unit="x",
            ),
            Check("logits off while all fits", off, "<=", t["off_while_all_fits"]),
        ]
        names = [n for n in by if "over held" not in n and "off" not in n]
        figures = {
            **by.figures("nats a byte", names),
            "weight bytes, float16 over held": counted(weights, "x"),
            "cache bytes at 129 tokens, float16 over held": counted(kept, "x"),
        }
        return Experiment(figures, checks, list(seeds), {"nats": by.rows("step", "nats", names)})
