"""ConvFirst's card: what it compares is equal, what it counts is what fusion saves."""

import torch

from paredown.papers.cards import fusion


def test_onednn_layer_by_layer_is_the_block() -> None:
    made, x = fusion.block(8), torch.randn(1, 8, 9, 7)
    with torch.inference_mode():
        got = fusion.by_layers(made, x.bfloat16())(x.bfloat16()).float()
        wanted = made(x)
    assert (got - wanted).norm() <= fusion.SAME * wanted.norm()


def test_the_fused_block_has_the_bits_of_its_layers() -> None:
    assert fusion.off_by(15, 8) == 0


def test_fusion_saves_the_expanded_tensor_and_no_more() -> None:
    seen = fusion.traffic(15, 8)
    assert seen["layers"] - seen["fused"] == 2 * seen["inner"]
    assert seen["least"] < seen["fused"] < seen["layers"]
