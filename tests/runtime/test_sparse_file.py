"""Sparse tensors in files: lossless to the bit, as small as counted, damage is refused."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from paredown.errors import ArtefactError
from paredown.runtime import sparse_file
from paredown.runtime.eager import load_tensors, save_tensors
from paredown.runtime.sparse_file import MASK, nbytes, pack, unpack


def sparse(shape, share, dtype=torch.float32):
    generator = torch.Generator().manual_seed(3)
    values = torch.randn(shape, generator=generator).to(dtype)
    return values.masked_fill(torch.rand(shape, generator=generator) < share, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("shape", [(64, 65), (4099,), (8, 4, 13, 11)])
def test_every_bit_comes_back_and_the_bytes_are_the_formula(dtype, shape):
    t = sparse(shape, 0.6, dtype)
    flat = t.reshape(-1)
    flat[:3] = torch.tensor([-0.0, float("nan"), float("inf")], dtype=dtype)
    mask, values = pack(t)
    kept = int((flat != 0).sum()) + 1  # NaN differs from 0, minus zero does not
    assert values.numel() == kept
    assert nbytes({"w": t}) == kept * t.element_size() + -(-t.numel() // 8)
    back = unpack(mask, values, shape)
    view = torch.int16 if t.element_size() == 2 else torch.int64
    pairs = (x.contiguous().reshape(-1) for x in (back, t))
    a, b = (x.view(torch.int32) if dtype == torch.float32 else x.view(view) for x in pairs)
    assert torch.equal(a, b)


def test_integers_with_zeros_are_packed_and_full_or_small_tensors_are_not():
    q = sparse((128, 64), 0.5).mul(40).to(torch.int8)
    assert nbytes({"q": q}) < 0.7 * q.numel()
    assert pack(torch.randn(128, 64)) is None
    assert pack(torch.zeros(100)) is None
    assert pack(torch.zeros(8192, dtype=torch.bool)) is not None


def test_a_file_holds_what_it_was_given(tmp_path):
    given = {"a": sparse((80, 80), 0.5), "b": torch.randn(90, 90), "c": torch.zeros(3)}
    sparse_file.save(given, tmp_path / "t.safetensors", {"tied:d": "a"})
    back = sparse_file.load(tmp_path / "t.safetensors")
    assert back.keys() == given.keys()
    assert all(torch.equal(back[k], given[k]) for k in given)
    with sparse_file.opened(tmp_path / "t.safetensors") as f:
        assert f.shape("a") == (80, 80)
        assert f.metadata["tied:d"] == "a"
    assert "a" + MASK in load_file(tmp_path / "t.safetensors")
    plain = tmp_path / "plain.safetensors"
    save_file(given, plain)
    assert torch.equal(sparse_file.load(plain)["a"], given["a"])


def test_a_damaged_mask_is_refused_by_the_loader(tmp_path):
    model = torch.nn.Linear(80, 80, bias=False)
    model.weight.data = sparse((80, 80), 0.5)
    path = tmp_path / "tensors.safetensors"
    save_tensors(model, path)
    again = torch.nn.Linear(80, 80, bias=False)
    load_tensors(again, path)
    assert torch.equal(again.weight, model.weight)
    held = load_file(path)
    held["weight" + MASK][0] ^= 255
    save_file(held, path, metadata={"sparse:weight": json.dumps([80, 80])})
    with pytest.raises(ArtefactError, match="not readable"):
        load_tensors(again, path)
