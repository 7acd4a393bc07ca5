"""Train the demo's network from scratch and write `digits.safetensors` (some minutes)."""

from __future__ import annotations

import argparse
import hashlib
import time
from pathlib import Path

import digits as example
import torch
from safetensors.torch import save_file
from torch import nn

from paredown.workloads import digits
from paredown.workloads.fit import Phase, fit


def rounded(model: nn.Module) -> dict[str, torch.Tensor]:
    """What is stored: weights in bfloat16, running statistics in float32, no counters."""
    buffers = {name for name, _ in model.named_buffers()}
    return {
        name: value.detach().contiguous() if name in buffers else value.to(torch.bfloat16)
        for name, value in model.state_dict().items()
        if value.is_floating_point()
    }


def main() -> None:
    """Low resolution first (the shapes of digits), then the resolution it will run at."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=example.WEIGHTS)
    parser.add_argument("--small", type=int, default=40, help="epochs at 48 pixels")
    parser.add_argument("--full", type=int, default=24, help="epochs at 96 pixels")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = example.network().to(memory_format=torch.channels_last)
    start = time.monotonic()

    def say(epoch: int, epochs: int, loss: float) -> None:
        print(
            f"epoch {epoch}/{epochs}  loss {loss:.3f}  {time.monotonic() - start:.0f} s", flush=True
        )

    phases = [
        Phase(digits.Epochs(*digits.split("train", 48)), options.small),
        Phase(digits.Epochs(*digits.split("train", example.SIZE)), options.full),
    ]
    fit(model, phases, rate=3e-3, average=100, progress=say)
    save_file(rounded(model.to(memory_format=torch.contiguous_format)), options.out)
    example.WEIGHTS = options.out
    work = example.target()
    for part, judge in (("validation", work.evaluate), ("held-out", work.verify)):
        scores = judge(work.model)
        print(f"{part}: {scores.mean():.4f} of {len(scores)}")
    print("sha256", hashlib.sha256(options.out.read_bytes()).hexdigest())


if __name__ == "__main__":
    main()
