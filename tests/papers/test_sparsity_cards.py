"""Exact parts of the cards on blocks, N:M training and consensus sub-networks."""

import pytest
import torch
from torch import nn

from paredown.papers.cards import block_sparsity, consensus_nets, sparse_training
from paredown.workload import TrainingData, Workload
from paredown.zoo.vit import ViT


def test_every_way_to_choose_blocks_cuts_the_same_work_and_spares_the_head():
    torch.manual_seed(0)
    model = ViT(48, 1, 3, 10, 1, image_size=16, patch=4, mlp_ratio=2).eval()
    x = torch.randn(4, 1, 16, 16)
    workload = Workload(model, (x,), calibration=[x, torch.randn(4, 1, 16, 16)])
    networks = {"random": block_sparsity.at_random(workload, 0.5, 0)}
    for name, way in block_sparsity.ways(0.5).items():
        networks[name] = block_sparsity.without_head(workload, way).workload.model
    for name, network in networks.items():
        layers = {p: m.weight for p, m in network.named_modules() if isinstance(m, nn.Linear)}
        assert torch.equal(layers.pop("head"), model.head.weight), name
        zeros = sum(int((w == 0).sum()) for w in layers.values())
        # A layer of 9 blocks cannot lose half of them.
        assert zeros / sum(w.numel() for w in layers.values()) == pytest.approx(0.5, abs=0.02), name
    assert not torch.equal(
        networks["LPViT"].blocks[0].mlp.fc1.weight, model.blocks[0].mlp.fc1.weight
    )


@pytest.mark.parametrize(("n", "m", "want"), [(2, 8, 0.5), (2, 4, 2 / 3)])
def test_a_step_s_work_is_counted_from_the_weights(n, m, want):
    assert sparse_training.counted_share(n, m) == want


def test_the_priced_network_saves_no_more_than_the_formula():
    steps = sparse_training.priced("resnet18", 2)
    dense, half = steps[None], steps[2, 8]
    assert 0.5 < half.macs / dense.macs < 0.55
    assert half.seconds < steps[2, 4].seconds < dense.seconds


def test_fresh_statistics_are_the_copy_s_alone():
    torch.manual_seed(0)
    model = consensus_nets.ResNet(8).eval()
    x = torch.randn(6, 1, 16, 16)
    workload = Workload(model, (x,))
    data = TrainingData(lambda: [((x,), torch.zeros(6, dtype=torch.long))])
    after = consensus_nets.fresh(workload, data)
    want = model.stem(x).transpose(0, 1).flatten(1)
    torch.testing.assert_close(after.norm.running_mean, want.mean(1))
    assert (model.norm.running_mean == 0).all()
