"""Tune mode: outputs, gradients and trajectories of evaluation mode, fewer saved bytes."""

import copy

import pytest
import torch
from nn_nets import with_statistics
from torch import nn

from paredown import zoo
from paredown.errors import InputError
from paredown.nn import ConvNormAct
from paredown.nn.tuned import TunedConvNorm
from paredown.techniques.train.tune_mode import shared_copy, tune_mode
from paredown.workload import Workload

PAIRS = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, 2, 1, groups=2), nn.BatchNorm1d, (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, bias=False), nn.BatchNorm2d, (2, 4, 7, 5)),
    "conv3d": (lambda: nn.Conv3d(4, 6, 3), nn.BatchNorm3d, (2, 4, 5, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), nn.BatchNorm1d, (8, 4)),
    "transposed": (
        lambda: nn.ConvTranspose2d(4, 6, 3, 2, 1, output_padding=1, groups=2),
        nn.BatchNorm2d,
        (2, 4, 5, 5),
    ),
    "transposed1d": (lambda: nn.ConvTranspose1d(4, 6, 3), nn.BatchNorm1d, (2, 4, 5)),
}


@pytest.mark.parametrize("kind", PAIRS)
def test_outputs_and_gradients_are_those_of_evaluation_mode(kind):
    torch.manual_seed(0)
    make, norm_kind, shape = PAIRS[kind]
    conv, norm = make().double(), norm_kind(6).double()
    with torch.no_grad():
        norm.running_mean.normal_()
        norm.running_var.uniform_(0.1, 3)
        norm.weight.uniform_(0.5, 2)
        norm.bias.normal_()
    norm.eval()
    tuned = TunedConvNorm(conv, norm)
    x = torch.randn(shape).double().requires_grad_()
    plain = norm(conv(x))
    torch.testing.assert_close(tuned(x), plain, atol=1e-10, rtol=1e-10)
    seed = torch.randn_like(plain)
    wanted = torch.autograd.grad(plain, (x, *tuned.parameters()), seed)
    found = torch.autograd.grad(tuned(x), (x, *tuned.parameters()), seed)
    torch.testing.assert_close(found, wanted, atol=1e-10, rtol=1e-10)
    # Back in training mode it is the plain pair, statistics and all.
    other = copy.deepcopy(norm).train()
    torch.testing.assert_close(tuned.train()(x), other(conv(x)))
    torch.testing.assert_close(norm.running_mean, other.running_mean)


def saved_bytes(run):
    """Bytes that a forward pass keeps for the backward pass, every storage once."""
    seen = {}

    def keep(t):
        seen[t.untyped_storage().data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = run()
    return sum(seen.values()), out


def test_only_the_input_is_kept():
    conv, norm = nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8).eval()
    x = torch.randn(4, 8, 16, 16)
    plain, _ = saved_bytes(lambda: norm(conv(x)))
    tuned, _ = saved_bytes(lambda: TunedConvNorm(conv, norm)(x))
    image = x.numel() * 4
    assert plain >= 2 * image
    assert image <= tuned < image + 4 * conv.weight.numel() * 4


def network():
    torch.manual_seed(0)
    return with_statistics(zoo.create("resnet18", num_classes=4, in_channels=1, width=8))


def test_a_whole_network_is_tuned_on_shared_parameters():
    model = network()
    x = torch.randn(2, 1, 32, 32)
    tuned = tune_mode(Workload(model, (x,)))
    assert len(tuned.pairs) == 20
    assert not tuned.refused
    assert sum(isinstance(m, TunedConvNorm) for m in tuned.model.modules()) == 20
    assert not any(isinstance(m, TunedConvNorm) for m in model.modules())
    mine = {id(p) for p in model.parameters()}
    assert {id(p) for p in tuned.model.parameters()} == mine
    torch.testing.assert_close(tuned.model(x), model(x), atol=1e-5, rtol=1e-5)


def test_loss_trajectories_coincide_for_100_steps():
    """In float64, so that only the order of rounding differs."""
    losses = []
    torch.manual_seed(1)
    data = torch.randn(100, 4, 1, 8, 8, dtype=torch.float64)
    answers = torch.randint(0, 3, (100, 4))
    for mode in ("eval", "tune"):
        torch.manual_seed(0)
        body = (ConvNormAct(1, 6, 3), ConvNormAct(6, 6, 3), nn.Flatten(), nn.Linear(384, 3))
        model = with_statistics(nn.Sequential(*body)).double()
        run = model if mode == "eval" else tune_mode(Workload(model.float(), (data[0].float(),)))
        run = run.model.double() if mode == "tune" else run
        optimizer = torch.optim.SGD(run.parameters(), 0.02, momentum=0.9)
        seen = []
        for x, y in zip(data, answers, strict=True):
            loss = nn.functional.cross_entropy(run(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            seen.append(loss.item())
        losses.append(torch.tensor(seen))
    assert losses[0].std() > 1e-3
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=1e-6)


def test_what_cannot_be_tuned_says_why():
    model = nn.Sequential(nn.BatchNorm2d(1), nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3)).eval()
    tuned = tune_mode(Workload(model, (torch.randn(1, 1, 8, 8),)))
    assert tuned.pairs == {"2": "1"}
    assert "input of the model" in tuned.refused["0:norm"]
    with pytest.raises(InputError, match="no batch norm"):
        tune_mode(Workload(nn.Conv2d(1, 3, 3).eval(), (torch.randn(1, 1, 8, 8),)))
    with pytest.raises(InputError, match="running statistics"):
        TunedConvNorm(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, track_running_stats=False))
    with pytest.raises(InputError, match="zero padding"):
        TunedConvNorm(nn.Conv2d(1, 3, 3, padding_mode="circular"), nn.BatchNorm2d(3))
    twin = shared_copy(model)
    assert twin[1].weight is model[1].weight
    assert twin[1] is not model[1]
