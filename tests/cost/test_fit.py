"""What does not fit a device: the bytes that are missing and the tensors that take them."""

from __future__ import annotations

import torch
from torch import nn

from paredown import device
from paredown.cost.fit import misfits
from paredown.cost.profile import profile
from paredown.graph.capture import capture
from paredown.workload import Workload


class Net(nn.Module):
    """2 MiB of weights; two buffers of 512 KiB alive at once."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Linear(4, 131072, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.wide(x))


def workload() -> Workload:
    return Workload(Net().eval(), (torch.zeros(1, 4),), name="net")


def test_a_microcontroller_keeps_weights_and_activations_apart() -> None:
    found = misfits(capture(workload()), device.load("stm32f746"))
    weights, active = found
    assert weights.what == "weights"
    assert weights.level == "flash"
    assert weights.needed == 2 << 20
    assert weights.short == 1 << 20
    assert weights.tensors == (("wide.weight", 2 << 20),)
    assert active.level == "DTCM and SRAM"
    assert active.needed == 2 * (512 << 10) + 16
    assert active.capacity == 320 << 10
    assert [size for _, size in active.tensors] == [512 << 10, 512 << 10, 16]
    assert "wide" in " ".join(name for name, _ in active.tensors[:2])


def test_flash_alone_may_be_short() -> None:
    found = misfits(capture(workload()), device.load("stm32h743"))
    assert [m.what for m in found] == ["activations"]
    assert found[0].short == 2 * (512 << 10) + 16 - (128 + 864) * 1024


def test_what_fits_is_silent_and_what_does_not_is_a_note() -> None:
    assert misfits(capture(workload()), device.load("pi5")) == []
    notes = " ".join(profile(workload(), device.load("rp2040")).notes)
    assert "does not fit rp2040: activations take 1,048,592 B, 778,256 B more than" in notes
    assert "states no rate for float32" in notes
    assert profile(workload(), device.load("pi5")).notes == []
