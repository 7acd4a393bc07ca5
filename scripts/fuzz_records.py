"""Record the calls that the fuzzer learns from: src/paredown/testing/fuzz/records.json.gz.

    pip install --target /tmp/site expecttest
    PYTHONPATH=/tmp/site python scripts/fuzz_records.py

Two sources, as in NeuRI: the samples of torch's own operator tests (which need `expecttest`), and
the networks of the zoo run on meta tensors. A few minutes; afterwards `scripts/fuzz_operators.py`.
"""

import gzip
import json
import random
import sys
import warnings
from collections import defaultdict
from pathlib import Path

import torch

from paredown import zoo
from paredown.testing.fuzz.call import Call
from paredown.testing.fuzz.trace import recorded

OUT = Path(__file__).parents[1] / "src/paredown/testing/fuzz/records.json.gz"
SAMPLES = 10
NETWORKS = (
    "mobilenetv2", "mobilenetv3-small", "resnet18", "densenet121", "convnext-tiny",
    "ghostnetv2-1.0", "mixer-s16", "vit-ti", "swin-tiny", "moat-tiny-0", "unet", "lsnet-t",
    "dit-s8", "resnext50-32x4d", "svt-h-s", "patnet-t0", "leyolo-n-320", "drct-x2",
)  # fmt: skip
"""One of each family; the whole zoo takes many minutes and adds few calls."""
PER_SIGNATURE, PER_OPERATOR = 8, 64
"""Calls kept: torch's tests repeat themselves."""


def tests_of_torch() -> list[Call]:
    """Calls of the sample inputs of torch's operator database, float32 on the CPU."""
    from torch.testing._internal.common_methods_invocations import op_db

    found: list[Call] = []
    for op in op_db:
        if torch.float32 not in op.dtypes:
            continue
        try:
            for n, s in enumerate(op.sample_inputs("cpu", torch.float32, requires_grad=False)):
                if n == SAMPLES:
                    break
                with recorded() as calls:
                    op(s.input, *s.args, **s.kwargs)
                found += calls
        except Exception as e:  # a sample that this build of torch cannot run
            print(f"{op.name}: {type(e).__name__}", file=sys.stderr)
    return found


def networks_of_the_zoo() -> list[Call]:
    """Calls of some architectures at their example inputs, on meta tensors."""
    found: list[Call] = []
    for name in NETWORKS:
        try:
            with torch.device("meta"):
                model = zoo.create(name).eval()
                inputs = [x.to("meta") for x in zoo.example(name)]
            with recorded() as calls, torch.no_grad():
                model(*inputs)
            found += calls
        except Exception as e:  # one that needs values
            print(f"{name}: {type(e).__name__}: {e}", file=sys.stderr)
    return found


def main() -> None:
    warnings.simplefilter("ignore")
    calls = [*networks_of_the_zoo(), *tests_of_torch()]
    kept: dict[str, dict[str, dict[str, Call]]] = defaultdict(lambda: defaultdict(dict))
    random.Random(0).shuffle(calls)
    for c in calls:
        same = kept[c.op][c.signature()]
        total = sum(len(s) for s in kept[c.op].values())
        if len(same) < PER_SIGNATURE and total < PER_OPERATOR:
            same[json.dumps(c.to_json())] = c
    rows = [
        c.to_json() for op in sorted(kept) for s in sorted(kept[op]) for c in kept[op][s].values()
    ]
    text = json.dumps({"schema": 1, "torch": torch.__version__, "calls": rows})
    OUT.write_bytes(gzip.compress(text.encode(), mtime=0))
    print(f"{len(calls)} calls, {len(rows)} kept of {len(kept)} functions, {OUT.stat().st_size} B")


if __name__ == "__main__":
    main()
