"""The entry point of `pare` and its verbs; nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any

import typer

from paredown import __version__
from paredown.cli import outcome

if TYPE_CHECKING:
    from paredown.report.progress import Progress

# Newer typers carry their own click: the root of its usage errors is found from a public name.
ClickException: Any = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")

app = typer.Typer(
    name="pare",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="Pare a neural network down until it fits a measured budget.",
)
plan_app = typer.Typer(no_args_is_help=True, help="What a verb would do, before any compute.")
app.add_typer(plan_app, name="plan")

TARGETS = "file.py[:name], model.onnx, hf:FOLDER, zoo:NAME or an artefact folder"

Target = Annotated[str, typer.Argument(help=TARGETS, show_default=False)]
To = Annotated[
    list[str], typer.Option("--to", help="a constraint, as 'latency <= 0.3x' or 'drop <= 1%'")
]
Json = Annotated[
    str | None, typer.Option("--json", metavar="FILE|-", help="write the document as JSON")
]
DeviceName = Annotated[
    str, typer.Option("--device", help="a name `pare device` lists, or a TOML file")
]
Threads = Annotated[
    int | None, typer.Option("--threads", min=1, help="threads to run with (all allowed cores)")
]
Random = Annotated[
    bool, typer.Option("--random-weights", help="hf: with a config.json alone is enough")
]
Only = Annotated[
    list[str] | None, typer.Option("--only", help="search just this technique (repeatable)")
]
Without = Annotated[
    list[str] | None, typer.Option("--without", help="leave this technique out (repeatable)")
]
Keep = Annotated[
    list[str] | None,
    typer.Option("--keep", help="sites to leave untouched, as 'head*' (repeatable)"),
]
BackendName = Annotated[str | None, typer.Option("--backend", help="run on this backend alone")]
Effort = Annotated[str, typer.Option("--effort", help="time to spend: 90s, 3m, 1h")]
Accept = Annotated[str | None, typer.Option("--accept", help="'predicted': let predictions decide")]
Seed = Annotated[int, typer.Option("--seed", help="for every random choice")]


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"pare {__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="show it and exit")
    ] = False,
) -> None:
    """Hold the options that stand before a verb."""


def _finish(work: Callable[[], object], json: str | None) -> None:
    raise typer.Exit(outcome.run(work, json=json))


def _progress() -> Progress:
    from paredown.report.progress import on_stderr

    return on_stderr()


@app.command()
def profile(
    target: Target,
    device: DeviceName = "this",
    measure: Annotated[bool, typer.Option("--measure", help="time it here as well")] = False,
    train: Annotated[bool, typer.Option("--train", help="backward and optimizer step too")] = False,
    html: Annotated[
        str | None, typer.Option("--html", metavar="FILE", help="write the page")
    ] = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """Where the time, the memory and the data movement of a network go."""

    def work() -> object:
        from paredown import verbs

        return verbs.profile(
            target,
            device=device,
            measure=measure,
            train=train,
            html=html,
            random_weights=random_weights,
        )

    _finish(work, json)


@app.command()
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
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Pare a network down until it fits a budget, and prove it."""

    def work() -> object:
        from paredown.paring import down as pare_down

        found = pare_down(
            target,
            to=to,
            device=device,
            backend=backend,
            only=only or [],
            without=without or [],
            keep=keep or [],
            effort=effort,
            threads=threads,
            out=out,
            resume=resume,
            strict=strict,
            accept=accept,
            random_weights=random_weights,
            seed=seed,
            progress=_progress(),
        )
        return getattr(found, "doc", found)

    _finish(work, json)


@plan_app.command("down")
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
    seed: Seed = 0,
    json: Json = None,
) -> None:
    """Show what `pare down` would try, in what time and disk."""

    def work() -> object:
        from paredown.paring import plan

        return plan(
            target,
            to=to,
            device=device,
            backend=backend,
            only=only or [],
            without=without or [],
            keep=keep or [],
            effort=effort,
            threads=threads,
            accept=accept,
            random_weights=random_weights,
            seed=seed,
        )

    _finish(work, json)


@app.command()
def check(
    target: Target,
    to: To,
    threads: Threads = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """Measure against a budget; the exit code is the answer (a gate for CI)."""

    def work() -> object:
        from paredown.paring import check as check_

        return check_(target, to=to, threads=threads, random_weights=random_weights)

    _finish(work, json)


@app.command()
def show(
    folder: Annotated[str, typer.Argument(help="an artefact folder", metavar="DIR")],
    json: Json = None,
) -> None:
    """Read an artefact: what it is, how it was made, what it achieved. Nothing of it is run."""

    def work() -> object:
        from paredown import verbs

        return verbs.show(folder)

    _finish(work, json)


@app.command()
def apply(
    recipe: Annotated[
        str, typer.Argument(help="a recipe file, or inline: 'static-int8:percentile=99.9@blocks.*'")
    ],
    target: Target,
    out: Annotated[str, typer.Option("--out", metavar="DIR", help="folder of the result")],
    backend: BackendName = None,
    threads: Threads = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """Apply a recipe to a target."""

    def work() -> object:
        from paredown import verbs

        return verbs.apply(
            recipe,
            target,
            out=out,
            backend=backend,
            threads=threads,
            random_weights=random_weights,
            progress=_progress(),
        )

    _finish(work, json)


@app.command()
def compare(
    targets: Annotated[
        list[str], typer.Argument(help=f"two or more of: {TARGETS}", metavar="A B ...")
    ],
    threads: Threads = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """Run targets side by side, in turns; ratios refer to the first."""

    def work() -> object:
        from paredown import verbs

        return verbs.compare(
            *targets, threads=threads, random_weights=random_weights, progress=_progress()
        )

    _finish(work, json)


@app.command()
def bench(
    target: Target,
    backend: Annotated[
        list[str] | None, typer.Option("--backend", help="on this backend (repeatable)")
    ] = None,
    threads: Threads = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """Time one target, on its own backend or on those named."""

    def work() -> object:
        from paredown import verbs

        return verbs.bench(
            target,
            backends=backend or [],
            threads=threads,
            random_weights=random_weights,
            progress=_progress(),
        )

    _finish(work, json)


@app.command()
def device(
    name: Annotated[
        str | None, typer.Argument(help="a device, or a TOML file", show_default=False)
    ] = None,
    json: Json = None,
) -> None:
    """List the devices, or show one."""

    def work() -> object:
        from paredown import verbs

        return verbs.device(name)

    _finish(work, json)


@app.command()
def calibrate(json: Json = None) -> None:
    """Measure this machine (under a minute) and keep the result."""

    def work() -> object:
        from paredown import verbs

        return verbs.calibrate(progress=_progress())

    _finish(work, json)


@app.command()
def techniques(
    target: Annotated[
        str | None, typer.Option("--for", metavar="TARGET", help="which apply to it, and why not")
    ] = None,
    random_weights: Random = False,
    json: Json = None,
) -> None:
    """List every technique."""

    def work() -> object:
        from paredown import verbs

        return verbs.techniques(target=target, random_weights=random_weights)

    _finish(work, json)


@app.command()
def papers(
    key: Annotated[
        str | None, typer.Argument(help="a key of the catalogue", show_default=False)
    ] = None,
    json: Json = None,
) -> None:
    """List the papers that have a working part here."""

    def work() -> object:
        from paredown import verbs

        return verbs.papers(key)

    _finish(work, json)


@app.command()
def reproduce(
    keys: Annotated[
        list[str] | None, typer.Argument(help="keys of the catalogue", metavar="KEY...")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="every card")] = False,
    scale: Annotated[
        str, typer.Option("--scale", help="quick (under a minute each) or full")
    ] = "quick",
    json: Json = None,
) -> None:
    """Run claim cards: small honest experiments of a paper's headline."""

    def work() -> object:
        from paredown import verbs

        return verbs.reproduce(keys or [], all=all_, scale=scale, progress=_progress())

    _finish(work, json)


@app.command()
def doctor(json: Json = None) -> None:
    """What is installed, what is missing, and how to get it."""

    def work() -> object:
        from paredown import verbs

        return verbs.doctor()

    _finish(work, json)


def main(argv: list[str] | None = None) -> int:
    """Run `pare` and return its exit code; bad usage is one line and 2, like any refusal."""
    args = sys.argv[1:] if argv is None else argv
    try:
        code = app(args, prog_name="pare", standalone_mode=False)
    except ClickException as e:
        if type(e).__name__ == "NoArgsIsHelpError":
            e.show()
            return outcome.REFUSED
        where = getattr(getattr(e, "ctx", None), "command_path", "pare")
        said = outcome.one_line(e.format_message())
        return outcome.fail(
            "UsageError",
            f"{said} (see: {where} --help)",
            outcome.REFUSED,
            _asked_json(args),
            sys.stdout,
        )
    except (typer.Abort, KeyboardInterrupt):
        return outcome.fail(
            "KeyboardInterrupt", "interrupted", outcome.INTERRUPTED, _asked_json(args), sys.stdout
        )
    return code if isinstance(code, int) else 0


def _asked_json(args: list[str]) -> str | None:
    """Where the error document goes when the arguments could not be parsed."""
    for i, arg in enumerate(args):
        if arg == "--json" and i + 1 < len(args):
            return args[i + 1]
        if arg.startswith("--json="):
            return arg.partition("=")[2]
    return None
