"""Verbs that act on a network: profile, down, plan, check, show, apply, compare, bench."""

from __future__ import annotations

from typing import Annotated

import typer

from paredown.cli.options import (
    TARGETS,
    Accept,
    BackendName,
    DeviceName,
    Effort,
    Json,
    Keep,
    NewTokens,
    Only,
    PromptTokens,
    Random,
    RunName,
    Seed,
    Target,
    Threads,
    To,
    Without,
    finish,
)


def profile(
    target: Target,
    device: DeviceName = "this",
    measure: Annotated[bool, typer.Option("--measure", help="time it here as well")] = False,
    train: Annotated[bool, typer.Option("--train", help="backward and optimizer step too")] = False,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="write the page")
    ] = None,
    random_weights: Random = False,
    run: RunName = None,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    pipeline: Annotated[
        bool, typer.Option("--pipeline", help="what surrounds a vision network when it is served")
    ] = False,
    pixels: Annotated[
        list[int] | None,
        typer.Option("--pixels", min=8, help="pipeline: side of a picture (repeatable)"),
    ] = None,
    json: Json = None,
) -> None:
    """Where the time, the memory and the data movement of a network go."""
    given = locals()
    del given["pipeline"]
    takes = ("target", "random_weights", "pixels", "json")
    if not pipeline:
        takes = tuple(k for k in given if k != "pixels")
    for name, value in given.items():
        if name not in takes and value not in (None, False, "this"):
            how = "cannot be given with" if pipeline else "needs"
            raise typer.BadParameter(f"--{name.replace('_', '-')} {how} --pipeline")
    finish("verbs:pipeline" if pipeline else "verbs:profile", {k: given[k] for k in takes})


def down(
    target: Target,
    to: To,
    device: DeviceName = "this",
    backend: BackendName = None,
    only: Only = None,
    without: Without = None,
    keep: Keep = None,
    effort: Effort = "3m",
    threads: Threads = None,
    out: Annotated[
        str | None, typer.Option("--out", metavar="DIR", help="folder of the result")
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="go on where a search in --out stopped")
    ] = False,
    strict: Annotated[bool, typer.Option("--strict", help="constraints must be proven")] = False,
    accept: Accept = None,
    random_weights: Random = False,
    run: RunName = None,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Pare a network down until it fits a budget, and prove it."""
    finish("paring:down", locals(), listen=True)


def plan_down(
    target: Target,
    to: To,
    device: DeviceName = "this",
    backend: BackendName = None,
    only: Only = None,
    without: Without = None,
    keep: Keep = None,
    effort: Effort = "3m",
    threads: Threads = None,
    accept: Accept = None,
    random_weights: Random = False,
    run: RunName = None,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Show what `pare down` would try, in what time and disk."""
    finish("paring:plan", locals())


def plan_native(
    target: Target,
    threads: Threads = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """Show how the native engine would run a network: operators, layouts, places, threads."""
    finish("verbs:plan_native", locals())


def plan_memory(
    buffers: Annotated[
        str, typer.Argument(help="a CSV file: id,lower,upper,size", metavar="BUFFERS.csv")
    ],
    capacity: Annotated[int, typer.Option("--capacity", min=0, help="bytes of the arena")],
    out: Annotated[
        str | None, typer.Option("--out", metavar="FILE", help="write the plan here")
    ] = None,
    seconds: Annotated[float, typer.Option("--seconds", min=0, help="to search")] = 10.0,
    json: Json = None,
) -> None:
    """Place buffers in one arena, or prove that they have no room (exit code 1)."""
    finish("verbs:plan_memory", locals(), listen=True)


def plan_serving(
    model: Annotated[
        str,
        typer.Argument(
            help="a language model of the catalogue, a .toml, a config.json or its folder",
            metavar="MODEL",
        ),
    ],
    device: DeviceName = "dgx-h100",
    batch: Annotated[int, typer.Option("--batch", min=1, help="sequences at a time")] = 1,
    context: Annotated[int, typer.Option("--context", min=1, help="tokens before")] = 4096,
    attention_device: Annotated[
        str | None,
        typer.Option("--attention-device", metavar="NAME", help="one for cache and attention"),
    ] = None,
    json: Json = None,
) -> None:
    """Show how a language model would be served on a device, from its shape alone."""
    finish("verbs:plan_serving", locals())


def check(
    target: Target,
    to: To,
    device: DeviceName = "this",
    threads: Threads = None,
    accept: Accept = None,
    random_weights: Random = False,
    run: RunName = None,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    json: Json = None,
) -> None:
    """Measure against a budget; the exit code is the answer (a gate for CI)."""
    finish("paring:check", locals())


def show(
    folder: Annotated[str, typer.Argument(help="an artefact folder", metavar="DIR")],
    json: Json = None,
) -> None:
    """Read an artefact: what it is, how it was made, what it achieved. Nothing of it is run."""
    finish("verbs:show", locals())


def apply(
    recipe: Annotated[
        str, typer.Argument(help="a recipe file, or inline: 'static-int8:percentile=99.9@blocks.*'")
    ],
    target: Target,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="folder of the result")],
    backend: BackendName = None,
    threads: Threads = None,
    random_weights: Random = False,
    run: RunName = None,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    json: Json = None,
) -> None:
    """Apply a recipe to a target."""
    finish("verbs:apply", locals(), listen=True)


def compare(
    targets: Annotated[
        list[str], typer.Argument(help=f"two or more of: {TARGETS}", metavar="A B ...")
    ],
    threads: Threads = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """Run targets side by side, in turns; ratios refer to the first."""
    finish("verbs:compare", locals(), spread="targets", listen=True)


def bench(
    target: Target,
    backends: Annotated[
        list[str] | None, typer.Option("--backend", help="on this backend (repeatable)")
    ] = None,
    threads: Threads = None,
    random_weights: Random = False,
    run: RunName = None,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    json: Json = None,
) -> None:
    """Time one target, on its own backend or on those named."""
    finish("verbs:bench", locals(), listen=True)
