"""Random networks against eager: capture, rules, memory, backends, rewrites (NeuRI).

    python benchmarks/fuzz.py --count 1000 --seed 0 --json FILE

A run that was stopped (Ctrl-C, a time limit, a kill) goes on where it stood when the same command
is given again. Exit 1 while a difference is neither fixed nor explained.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from pathlib import Path

import torch

from paredown.errors import ParedownError
from paredown.report.progress import on_stderr
from paredown.testing.fuzz.campaign import Campaign, Settings


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=100, help="networks in all")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first network")
    parser.add_argument("--size", type=int, default=8, help="calls per network")
    parser.add_argument("--json", type=Path, default=Path("fuzz.json"), help="the document")
    parser.add_argument("--limit", type=float, help="seconds after which to stop")
    parser.add_argument(
        "--backends-every", type=int, default=0, help="backends on every n-th network; 0: none"
    )
    parser.add_argument(
        "--rewrites-every", type=int, default=0, help="rewrites on every n-th network; 0: none"
    )
    parser.add_argument("--backends", default="native,onnxruntime,openvino")
    parser.add_argument("--again", action="store_true", help="start anew over an old document")
    given = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    settings = Settings(
        given.seed,
        given.size,
        tuple(given.backends.split(",")),
        given.backends_every,
        given.rewrites_every,
    )
    progress = on_stderr()
    try:
        old = given.json.exists() and not given.again
        campaign = Campaign.load(given.json, settings) if old else Campaign(settings)
        progress.start(f"{given.count} networks from seed {given.seed}", given.count)

        def say(done: int, found: int) -> None:
            progress.update(f"{done} of {given.count} networks, {found} open", done=done)

        campaign.run(given.count, path=given.json, limit_s=given.limit, say=say)
    except ParedownError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"stopped; {given.json} holds what was done: the same command goes on", file=sys.stderr
        )
        return 130
    finally:
        progress.close()
    print(summary(campaign))
    return 1 if campaign.open() else 0


def summary(campaign: Campaign) -> str:
    """What was run and what is open, in a few lines."""
    c = campaign.counts
    lines = [
        f"{campaign.done} networks, {c['valid']} valid, {c['invalid']} invalid, "
        f"{len(campaign.functions)} functions, {campaign.seconds:.0f} s"
    ]
    lines += [f"  {name}: {dict(tally)}" for name, tally in campaign.backends.items()]
    for kind, found in campaign.findings.items():
        mark = "explained" if found["explained"] else "OPEN"
        lines.append(f"  {mark} {found['networks']}x {kind}: {found['detail'][:160]}")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
