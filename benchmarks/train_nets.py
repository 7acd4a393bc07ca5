"""Train the benchmark's four networks on their tasks (some minutes each on 2 cores)."""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch

from paredown.workloads import nets
from paredown.workloads.fit import Phase, fit

FOLDER = Path(__file__).with_name("nets")


def train(name: str, *, share: float, bf16: bool) -> dict[str, object]:
    """Train one network, store it, judge what was stored."""
    chosen = nets.net(name)
    torch.manual_seed(0)
    model = chosen.build().to(memory_format=torch.channels_last)
    start = time.monotonic()

    def say(epoch: int, epochs: int, loss: float) -> None:
        print(
            f"{name} {epoch}/{epochs} loss {loss:.3f} {time.monotonic() - start:.0f} s", flush=True
        )

    fit(
        model,
        [Phase(chosen.batches(), max(1, round(chosen.epochs * share)))],
        rate=chosen.rate,
        average=100,
        bf16=bf16,
        progress=say,
    )
    nets.store(model.to(memory_format=torch.contiguous_format), FOLDER / f"{name}.safetensors")
    work = nets.workload(name, FOLDER)
    record = {
        "params": sum(p.numel() for p in work.model.parameters()),
        "size": chosen.size,
        "task": chosen.task,
        "held_out": round(float(work.verify(work.model).mean()), 4),
        "validation": round(float(work.evaluate(work.model).mean()), 4),
        "seconds": round(time.monotonic() - start),
    }
    print(name, record, flush=True)
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", default=list(nets.NETS))
    parser.add_argument("--share", type=float, default=1.0, help="share of the epochs")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--bf16", action="store_true", help="train under bfloat16 autocast")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    notes = FOLDER / "nets.json"
    known = json.loads(notes.read_text()) if notes.exists() else {}
    for name in options.names:
        known[name] = train(name, share=options.share, bf16=options.bf16)
        notes.write_text(json.dumps(known, indent=2) + "\n")


if __name__ == "__main__":
    main()
