"""The demo's target: a MobileNetV2 that reads scanned digits at 96 x 96 pixels.

Trained by `train_digits.py` on 720 scans in 4 minutes on 2 cores; weights are stored in bfloat16
and run in float32. Accuracy 0.9869 on 917 held-out scans, 0.9875 on the 160 for validation.
`digits.safetensors` has SHA-256 aa7f70bcc81ada346a68f5c5be9875e2e8aa964c27b5c90a1b850a00649e7ae1.
"""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import nn

from paredown import zoo
from paredown.workloads import digits

SIZE = 96
WEIGHTS = Path(__file__).with_name("digits.safetensors")


def network() -> nn.Module:
    """MobileNetV2 1.0 for one-channel images and ten classes, untrained."""
    return zoo.create("mobilenetv2", num_classes=10, in_channels=1)


def trained() -> nn.Module:
    """The network with the committed weights, float32, in eval mode."""
    model = network()
    stored = {name: value.float() for name, value in load_file(WEIGHTS).items()}
    # Batch norms count batches in training only; the counters are not stored.
    state = {k: v for k, v in model.state_dict().items() if k.endswith("num_batches_tracked")}
    model.load_state_dict(state | stored)
    return model.eval()


def target() -> object:
    """The workload: batch 1, with calibration, validation, held-out and training data."""
    return digits.workload(trained(), size=SIZE, name="digits")
