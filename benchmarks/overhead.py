"""How light paredown itself is: import, help, capture, and a profile that allocates no weights.

    python benchmarks/overhead.py [--repeats 9] [--json benchmarks/results/overhead.json]

Asked: ``import paredown`` under 0.5 s beyond torch's, ``pare --help`` under 0.5 s and without
torch, capture of 1,000 operators under 5 s, a decoder of 70 billion parameters profiled under 60 s
in 24 GiB.
"""

from __future__ import annotations

import argparse
import datetime
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from hf_coverage import networks, profile_one

ASKED = {
    "import_beyond_torch_s": 0.5,
    "help_s": 0.5,
    "capture_1000_operators_s": 5.0,
    "profile_70b_s": 60.0,
    "profile_70b_peak_bytes": 24 * 2**30,
}


def child(*args: str) -> float:
    """Seconds of a fresh interpreter."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *args], check=True, capture_output=True)
    return time.perf_counter() - start


def importing(repeats: int) -> dict[str, Any]:
    """Torch alone and torch with paredown in turns; the median of the differences."""
    pairs = [
        (child("-c", "import torch"), child("-c", "import torch, paredown"))
        for _ in range(repeats + 1)
    ][1:]
    return {
        "import_torch_s": statistics.median(a for a, _ in pairs),
        "import_beyond_torch_s": statistics.median(b - a for a, b in pairs),
    }


HELP = """
import contextlib, io, sys
from paredown.cli import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--help"])
sys.exit("torch was imported" if "torch" in sys.modules else 0)
"""


def helping(repeats: int) -> dict[str, Any]:
    """``pare --help`` in a fresh interpreter; an error where it imports torch."""
    return {"help_s": statistics.median([child("-c", HELP) for _ in range(repeats + 1)][1:])}


def capturing(repeats: int) -> dict[str, Any]:
    """Convolution, batch norm and ReLU, 334 times."""
    import torch
    from torch import nn

    from paredown.graph.capture import capture
    from paredown.workload import Workload

    layers = [
        layer
        for _ in range(334)
        for layer in (nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    ]
    workload = Workload(nn.Sequential(*layers).eval(), (torch.zeros(1, 8, 16, 16),))
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        graph = capture(workload)
        seconds.append(time.perf_counter() - start)
    return {
        "capture_operators": len(graph.nodes),
        "capture_1000_operators_s": statistics.median(seconds),
    }


def profiling() -> dict[str, Any]:
    """Llama 3 70B from its configuration, priced for a catalogued device; what the process
    reached in memory.
    """
    from paredown.device import load

    _, config = networks()["llama-3-70b"]
    row = profile_one(config(), load("pi5"))
    return {
        "profile_70b_params": row["params"],
        "profile_70b_s": row["seconds"],
        "profile_70b_peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def main() -> int:
    """Measure all; exit 1 where a figure is not reached."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = importing(options.repeats) | helping(options.repeats)
    found |= capturing(min(options.repeats, 3)) | profiling()
    missed = [name for name, most in ASKED.items() if found[name] > most]
    for name, value in found.items():
        print(f"{name:28} {value:.4g}" + (f"  asked <= {ASKED[name]}" if name in ASKED else ""))
    if options.json:
        from paredown.measure.fingerprint import fingerprint

        body = {
            "schema": 1,
            "date": datetime.date.today().isoformat(),
            "command": " ".join(["python", *sys.argv]),
            "machine": fingerprint().model_dump(),
            "asked": ASKED,
            "found": found,
            "missed": missed,
        }
        options.json.write_text(json.dumps(body, indent=1) + "\n")
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
