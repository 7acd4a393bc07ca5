"""Exact parts of the language models' cards: data, injected outliers, shares, bytes, adapters."""

import pytest
import torch
from torch import nn

from paredown.papers.cards import _text, adapters, language
from paredown.runtime.nf4 import NF4Linear


def test_windows_are_real_text_and_held_out_ones_are_others():
    for domain in ("reference", "source"):
        train, held = (_text.windows(domain, p) for p in ("train", "held-out"))
        assert train.shape[1] == held.shape[1] == _text.CONTEXT + 1
        assert len(train) > 6 * len(held) > 1500
        assert train.max() < 256
        seen = {tuple(w) for w in train.tolist()}
        assert sum(tuple(w) in seen for w in held.tolist()) < 0.05 * len(held)
    assert b"def " in bytes(_text.text("source").tolist())


def test_the_decoder_is_causal():
    torch.manual_seed(0)
    model = _text.Decoder(32).eval()
    ids = _text.windows("reference", "train")[:2, :20]
    other = ids.clone()
    other[:, 12:] = 7
    with torch.inference_mode():
        assert torch.equal(model(ids)[:, :12], model(other)[:, :12])


def test_shares_of_the_mixed_decoder_meet_what_is_counted():
    share, size = language.shares()
    values = 2 * (256 + 256 + 256 + 1024)
    assert share == pytest.approx(1 - 8 * 2 / values)
    assert 0.5 < size < 0.55


def test_bases_have_one_adapter_and_only_it_is_trained():
    torch.manual_seed(0)
    model = _text.Decoder(adapters.WIDTH)
    ids = _text.windows("source", "train")[:2, :-1]
    want = model(ids)
    for base in adapters.BASES:
        made = adapters.adapted(model, base, 3)
        trained = {n.rpartition(".")[2] for n, p in made.named_parameters() if p.requires_grad}
        assert trained == {"down", "up"}
        with torch.no_grad():
            off = float((made(ids) - want).norm() / want.norm())
        assert off < 1e-6 if base == "float32" else 0 < off < 0.3
    downs = [
        dict(adapters.adapted(model, b, 3).named_parameters())["blocks.0.fc1.down"]
        for b in ("float32", "NF4")
    ]
    assert torch.equal(*downs), "every base starts from the same adapters"


def test_bytes_and_errors_of_normal_float():
    floats, base, training = adapters.held_bytes()
    assert floats == 2 * 4 * 12 * 128**2
    assert floats / base == pytest.approx(32 / 4.127, rel=0.01)
    adapter = 2 * adapters.RANK * ((128 + 384) + (128 + 128) + 2 * (128 + 512))
    assert training == base + 16 * adapter
    errors = adapters.squared_errors()
    assert errors["NF4"] < min(errors["int4"], errors["fp4"])
    linear = nn.Linear(128, 8)
    assert isinstance(adapters.packed(linear, True), NF4Linear)
