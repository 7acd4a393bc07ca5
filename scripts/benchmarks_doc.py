"""Write docs/benchmarks.md from the results under benchmarks/results; `--check` compares."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from statistics import geometric_mean
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
PAGE = ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

Made by `scripts/benchmarks_doc.py` from the results committed under `benchmarks/results`; do not
edit. Every figure is of the machine named with it, outputs checked before anything is timed.
"""


def table(head: list[str], rows: list[list[str]]) -> list[str]:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def machine(body: dict[str, Any]) -> str:
    """Where it was measured."""
    m = body.get("machine") or body["fingerprint"]
    probe = m.get("probe") or {}
    speed = (
        f", {probe['bandwidth'] / 1e9:.0f} GB/s read in its probe" if "bandwidth" in probe else ""
    )
    return f"{m['cpu']}, {m['cores']} cores{speed}"


def times(value: float, spread: list[float]) -> str:
    """A ratio with its interval."""
    return f"{value:.2f}x ({spread[0]:.2f} to {spread[1]:.2f})"


def down(body: dict[str, Any]) -> list[str]:
    """The main job beside every single runtime."""
    rows: list[list[str]] = []
    for net in body["networks"]:
        pared, *peers = net["rows"]
        best = min((r for r in peers if r["gate"]), key=lambda r: r["over_pared"])
        steps = ", ".join(s["technique"] for s in net["recipe"]["steps"])
        rows.append(
            [
                net["network"],
                f"{steps} -> {net['recipe']['lower']['backend']}",
                f"{100 * pared['drop']:.2g} %",
                times(best["over_pared"], best["over_pared_interval"]),
                best["backend"],
                f"{next(r['over_pared'] for r in peers if r['backend'] == 'eager'):.1f}x",
                f"{pared['a_a']:.3f}",
                net["date"],
            ]
        )
    reached = body["reached"]
    slower = reached["never slower than 1.02x"]
    head = ["network", "pared to", "drop", "faster than the best peer", "which is", "than eager"]
    return [
        "## `pare down` beside every single runtime",
        "",
        "`python benchmarks/down.py --effort 5m`: lowest latency at a drop of at most 1 % on"
        " held-out examples, batch 1, then one interleaved run with eager, inductor, ONNX Runtime,"
        " OpenVINO in f32, bf16 and int8 (NNCF). A peer that loses more than 1 % does not count.",
        "",
        *table([*head, "A/A", "date"], rows),
        "",
        f"Asked: never slower than 1.02x ({'reached' if slower else 'missed'}); at least 1.25x"
        f" faster on two of four (on {len(reached['at least 1.25x faster'])}). {machine(body)}.",
    ]


def overhead(body: dict[str, Any]) -> list[str]:
    """What paredown itself costs."""
    asked = body["asked"]
    rows = [
        [name.replace("_", " "), f"{value:.4g}", f"{asked[name]:.4g}" if name in asked else ""]
        for name, value in body["found"].items()
    ]
    return [
        "## What paredown itself costs",
        "",
        "`python benchmarks/overhead.py`; seconds are medians of fresh interpreters.",
        "",
        *table(["figure", "found", "asked at most"], rows),
        "",
        f"{body['date']}, {machine(body)}.",
    ]


def native(body: dict[str, Any]) -> list[str]:
    """The native engine beside the best of the runtimes that ran."""
    groups: dict[tuple[str, str, int], list[dict[str, Any]]] = {}
    for row in body["rows"]:
        key = (row["network"], row["precision"], row["batch"])
        groups.setdefault(key, []).append(row)
    rows: list[list[str]] = []
    faster: dict[tuple[str, int], dict[str, float]] = {}
    for (network, precision, batch), found in groups.items():
        ours = next((r for r in found if r["backend"] == "native" and r.get("median_s")), None)
        peers = [r for r in found if r["backend"] != "native" and r.get("median_s") and r["gate"]]
        if ours is None or not peers:
            continue
        best = min(peers, key=lambda r: r["over_first"])
        faster.setdefault((precision, batch), {})[network] = best["over_first"]
        rows.append(
            [
                network,
                precision,
                str(batch),
                f"{1e3 * ours['median_s']:.2f} ms",
                times(best["over_first"], best["over_first_interval"]),
                best["backend"],
                f"{ours['peak_fraction']:.0%}",
                f"{ours['torch_share']:.0%}",
            ]
        )
    head = ["network", "precision", "batch", "native", "faster than the best peer", "which is"]
    commands = dict.fromkeys(r.get("command", body["command"]) for r in body["rows"])
    return [
        "## The native engine",
        "",
        f"{'; '.join(f'`{c}`' for c in commands)}. Only the backends named there took part.",
        "",
        *(f"- {line}" for line in means(faster)),
        "",
        *table([*head, "share of the bound", "operators run by torch"], rows),
        "",
        f"{machine(body)}.",
    ]


def shapes(levels: list[dict[str, Any]]) -> list[str]:
    """Our kernels against oneDNN's, shape by shape."""
    rows: list[list[str]] = []
    for body in levels:
        # Without tiles of bf16 the peer, which has them, is none.
        for dtype in ("float32", "bfloat16") if body["isa"] == "amx" else ("float32",):
            found = [r for r in body["rows"] if r["dtype"] == dtype and r.get("ratio")]
            if not found:
                continue
            ratios = [r["ratio"] for r in found]
            slow = [f"{r['shape']} {r['ratio']:.2f}x" for r in found if r["ratio"] < 0.95]
            mean = geometric_mean(ratios)
            of_both = f"{body['isa']}, oneDNN {body['peer_isa']}"
            told = "; ".join(slow[:6]) + (f"; {len(slow) - 6} more" if len(slow) > 6 else "")
            rows.append(
                [of_both, dtype, f"{len(found) - len(slow)} of {len(found)}", f"{mean:.2f}x", told]
            )
    packed = [
        f"{r['shape'].removeprefix('matvec ')} {r['bandwidth_share']:.2f}"
        for body in levels[-1:]
        for r in body["rows"]
        if "bandwidth_share" in r
    ]
    return [
        "## Kernels against oneDNN, shape by shape",
        "",
        "`python benchmarks/native_kernels.py --isa LEVEL`: one core, weights packed ahead on both"
        " sides, outputs compared, the shortest of each. oneDNN's time over ours.",
        "",
        *table(["level", "dtype", "at least 0.95x", "geometric mean", "below"], rows),
        "",
        f"Packed matrix times vector ({levels[-1]['isa']}), share of the read bandwidth over the"
        f" same bytes: {', '.join(packed)}.",
        "",
        f"{machine(levels[-1])}.",
    ]


def kernels(body: dict[str, Any]) -> list[str]:
    """Operator tasks by category: what each backend gets right, and how fast."""
    found = {(r["category"], r["backend"]): r for r in body["categories"]}
    names = sorted({b for _, b in found})

    def cell(category: str, backend: str) -> str:
        r = found.get((category, backend))
        if r is None:
            return ""
        speed = f", {r['ratio']:.2f}x" if r.get("ratio") else ""
        return f"{r['pass']:.0%}{speed}"

    order = sorted({c for c, _ in found}, key=lambda c: (c == "all", c))
    rows = [[c, str(found[c, names[0]]["tasks"]), *(cell(c, b) for b in names)] for c in order]
    return [
        "## Operators and short chains, by category",
        "",
        f"`python benchmarks/kernels.py --seconds {body['seconds']:g}`: small fp32 tasks after"
        f" MultiKernelBench (arXiv:2507.17773), {body['threads']} thread(s). The share that is"
        " right and the backend's own work, and the geometric mean of eager's time over the"
        " backend's. Tasks are small: what a call costs weighs in all of them. What the native"
        " engine leaves to torch does not count as right here.",
        "",
        *table(["category", "tasks", *names], rows),
        "",
        f"{machine(body)}.",
    ]


def means(faster: dict[tuple[str, int], dict[str, float]]) -> list[str]:
    """Geometric means over networks, and the least."""
    lines: list[str] = []
    for (precision, batch), found in faster.items():
        mean = geometric_mean(found.values())
        least = min(found, key=lambda n: found[n])
        lines.append(
            f"{precision}, batch {batch}: {mean:.2f}x in geometric mean of {len(found)},"
            f" {found[least]:.2f}x at least ({least})"
        )
    return lines


def coverage(body: dict[str, Any]) -> list[str]:
    """Hugging Face architectures profiled."""
    families = sorted({n["family"] for n in body["networks"].values()})
    return [
        "## Hugging Face architectures priced",
        "",
        f"`{body['command']}`: {body['priced']} of {body['of']} architectures with random weights"
        f" have at least {body['threshold']:.0%} of operators and of bytes priced"
        f" ({', '.join(families)}).",
    ]


def within(by: str, rows: list[dict[str, Any]]) -> str:
    """How far predictions of a kind lie from what was measured; empty where there are none."""
    if not rows:
        return ""
    ratios = sorted(r["predicted"]["value"] / r["latency"]["value"] for r in rows)
    tenth, half, most = (ratios[int(q * (len(ratios) - 1))] for q in (0.1, 0.5, 0.9))
    return f"by {by} {half:.2f} in the middle of {len(rows)}, {tenth:.2f} to {most:.2f} for 8 of 10"


def zoo(body: dict[str, Any]) -> list[str]:
    """What every paper's MACs promise and what this CPU delivers."""
    timed = sorted((r for r in body["rows"] if "latency" in r), key=lambda r: r["macs"])
    left = [r for r in body["rows"] if "latency" not in r]
    rates = sorted((r["macs_per_s"] / 1e9, r["name"]) for r in timed)
    rows: list[list[str]] = []
    for r in timed:
        taken, spread = r["latency"]["value"], r["latency"]["spread"]
        guess, peak = r["predicted"]["value"], r["peak_memory"]["value"]
        rows.append(
            [
                r["name"],
                "x".join(map(str, r["input"])),
                f"{r['macs'] / 1e9:.3f} G",
                f"{r['params'] / 1e6:.2f} M",
                f"{1e3 * taken:.1f} ms ({1e3 * spread[0]:.1f} to {1e3 * spread[1]:.1f})",
                "" if guess is None else f"{guess / taken:.2f}",
                f"{r['macs_per_s'] / 1e9:.0f}",
                "" if peak is None else f"{peak / 2**20:.0f} MiB",
                f"{r['a_a_ratio']['value']:.3f}"
                if "a_a_ratio" in r
                else f"{r['latency']['n']} runs",
            ]
        )
    head = ["network", "input", "MACs", "parameters", "latency", "predicted over measured"]
    learned = [r for r in timed if r.get("priced_with", "").startswith("learned")]
    said = [
        within("learned utilisation", learned),
        within("one share of the peak for each kind", [r for r in timed if r not in learned]),
    ]
    why = (
        f" Not timed: {', '.join(r['name'] for r in left)} ({left[0]['skipped']})." if left else ""
    )
    return [
        "## The zoo: what MACs promise and what this CPU delivers",
        "",
        f"`python benchmarks/zoo.py`: {body['backend']}, fp32, batch 1, {body['threads']} threads,"
        f" the paper's input. A second is worth {rates[0][0]:.0f} GMACs of {rates[0][1]} and"
        f" {rates[-1][0]:.0f} of {rates[-1][1]}, {rates[len(rates) // 2][0]:.0f} in the middle."
        f" Times were taken at real-time priority beside other work: where A/A is off 1 by more"
        f" than a few percent, so are they. Predicted over measured:"
        f" {'; '.join(filter(None, said))}.{why}",
        "",
        *table([*head, "GMAC/s", "peak memory", "A/A"], rows),
        "",
        f"{machine(body)}.",
    ]


def techniques(body: dict[str, Any]) -> list[str]:
    """The main job with the families of issue 6 and without; ours against peers."""
    lines = ["## Families of techniques, and peers at equal bits", ""]
    if not body["summary"]:
        lines += ["Families: no row was run under these settings.", ""]
    for scale, s in body["summary"].items():
        done = [r for r in body["families"] if r["scale"] == scale and "verdict" in r]
        if not done:
            why = "; ".join(f"{n}: {w}" for n, w in s["failed"].items())
            lines += [f"At scale {scale}, of {s['of']} rows none has a result ({why}).", ""]
            continue
        rows = [
            [
                r["row"],
                f"{r['fit']['fp32']:.3f}",
                f"{r['fit']['plain_4bit']:.3f}",
                _steps(r["without"]),
                _steps(r["with"]),
                f"{100 * r['without']['drop']:.2g} %, {100 * r['with']['drop']:.2g} %",
                times(r["gain"], r["gain_interval"]) if r["gain"] is not None else "",
                r["verdict"],
            ]
            for r in done
        ]
        effort = {r["effort"] for r in done}
        mean = "none" if s["geometric_mean"] is None else f"{s['geometric_mean']:.2f}x"
        head = ["network, budget", "fp32", "plain 4 bits", "without", "with", "drops"]
        lines += [
            f"`python benchmarks/techniques.py --scale {scale}`"
            f" ({', '.join(sorted(effort))} a search): what `pare down` ends with under each budget"
            " of `benchmarks/techniques.yaml`, with the families named there and without. A gain is"
            " the budgeted cost without them over the cost with them.",
            "",
            *table([*head, "gain", "verdict"], rows),
            "",
            f"{s['rows']} of {s['of']} rows run. Geometric mean {mean} over {s['counted_rows']}"
            f" (asked 1.3x), {len(s['win'])} won, {len(s['tie'])} tied, {len(s['loss'])} lost,"
            f" {len(s['luck'])} won by luck (none of the families in the recipe):"
            f" {'reached' if s['reached'] else 'not reached'}. {_load(done)}",
            "",
        ]
    return [*lines, *_peers(body), "", f"{machine(body)}."]


def _steps(arm: dict[str, Any]) -> str:
    steps = ", ".join(s["technique"] for s in arm["steps"]) or "nothing"
    trials = arm["trials"].get("done", 0)
    return f"{steps} -> {arm['lower']['backend']} ({trials} trial{'s' * (trials != 1)})"


def _load(rows: list[dict[str, Any]]) -> str:
    """How busy the machine was, in words."""
    loads = sorted(max(r["load_before"], r["load_after"]) for r in rows)
    if not loads:
        return ""
    return f"Load average at the rows' ends: {loads[0]:.1f} to {loads[-1]:.1f} on two cores."


def _peers(body: dict[str, Any]) -> list[str]:
    import yaml

    file = ROOT / "benchmarks" / "techniques_explained.yaml"
    why = (yaml.safe_load(file.read_text()) or {}) if file.exists() else {}
    rows = [
        [
            r["row"],
            metric,
            f"{x['ours']:.4g}",
            f"{x['theirs']:.4g}",
            f"{x['value']:.3g}"
            + (f" ({x['interval'][0]:.3g} to {x['interval'][1]:.3g})" if "interval" in x else ""),
            x["verdict"],
            why.get(f"{r['row']}/{metric}", "") if x["verdict"] == "loss" else "",
        ]
        for r in body["peers"]
        for metric, x in r.get("metrics", {}).items()
    ]
    s = body["peers_summary"]
    failed = [f"{n}: {why}" for n, why in s["not testable here"].items()]
    share = "none" if s["win_or_tie"] is None else f"{s['win_or_tie']:.0%}"
    return [
        "Peers, `--part peers`: scores are ours less theirs, sizes and latencies theirs over ours.",
        "",
        *table(["peer, network", "metric", "ours", "theirs", "apart", "we", "why lost"], rows),
        "",
        f"{s['rows']} of {s['of']} rows run: {s['win']} won, {s['tie']} tied, {s['loss']} lost;"
        f" {share} won or tied (asked 80 %). {_load([r for r in body['peers'] if 'metrics' in r])}",
        *(["", "Not testable here: " + "; ".join(failed) + "."] if failed else []),
    ]


SHOWN = (
    "computing cycles",
    "cycles",
    "bytes from and to memory",
    "bytes between buffer and array",
    "energy",
)


def zigzag(body: dict[str, Any]) -> list[str]:
    """Accelerator costs beside ZigZag's."""
    rows: list[list[str]] = []
    for group in body["summary"]:
        cells = [group["machine"], group["network"], str(group["different"])]
        for name in SHOWN:
            f = group["figures"][name]
            cells.append(f"{f['over']:.2f} ({f['least']:.2f} to {f['most']:.2f})")
        rows.append(cells)
    machines = ", ".join(f"`{n}` ({m['says']})" for n, m in body["machines"].items())
    return [
        "## Accelerators beside ZigZag",
        "",
        f"`{body['command']}`: our figures over those of zigzag-dse {body['zigzag']}, for the whole"
        " network and from the least to the most of its different layers. Both sides have the same"
        f" machine, layers and spatial mapping: {machines}. ZigZag's cycles are the least latency"
        f" and its bytes and energy the least energy of all orders of {body['factors']} loop"
        " factors. What differs and why: [cost models](cost-models.md#beside-zigzag). Nothing is"
        " timed. Where a network has fewer layers on one machine than on another, the rest was not"
        " evaluated there: ZigZag takes seconds for each.",
        "",
        *table(["machine", "network", "different layers", *SHOWN], rows),
    ]


PARTS: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "down": down,
    "techniques": techniques,
    "native": native,
    "overhead": overhead,
    "kernels": kernels,
    "hf_coverage": coverage,
    "zigzag": zigzag,
    "zoo": zoo,
}


def page() -> str:
    """The page of all results that are there."""
    parts = [HEAD]
    for name, part in PARTS.items():
        file = RESULTS / f"{name}.json"
        if file.exists():
            parts.append("\n".join(part(json.loads(file.read_text()))) + "\n")
        if name == "native":
            levels = [RESULTS / f"native_kernels_{isa}.json" for isa in ("avx2", "avx512", "amx")]
            read = [json.loads(f.read_text()) for f in levels if f.exists()]
            parts += ["\n".join(shapes(read)) + "\n"] if read else []
    return "\n".join(parts)


def main() -> int:
    """Write the page, or with `--check` exit 1 where it differs."""
    if "--check" in sys.argv:
        stale = not PAGE.exists() or PAGE.read_text() != page()
        if stale:
            print("docs/benchmarks.md is stale: run scripts/benchmarks_doc.py", file=sys.stderr)
        return int(stale)
    PAGE.write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
