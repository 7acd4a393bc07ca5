"""The entry point of `pare`; nothing heavy is imported before a verb needs it."""

from __future__ import annotations

import sys
from io import TextIOWrapper
from typing import Annotated, Any

import typer

from paredown import __version__
from paredown.cli import lists, outcome, work

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
plan = typer.Typer(no_args_is_help=True, help="What a verb would do, before any compute.")
plan.command("down")(work.plan_down)
plan.command("native")(work.plan_native)
plan.command("memory")(work.plan_memory)
plan.command("serving")(work.plan_serving)

VERBS = (
    work.profile,
    work.down,
    work.check,
    work.show,
    work.apply,
    work.compare,
    work.bench,
    lists.device,
    lists.calibrate,
    lists.techniques,
    lists.papers,
    lists.zoo,
    lists.reproduce,
    lists.doctor,
)
for verb in VERBS:
    app.command()(verb)
app.add_typer(plan, name="plan")


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


def main(argv: list[str] | None = None) -> int:
    """Run `pare` and return its exit code; bad usage is one line and 2, like any refusal."""
    args = sys.argv[1:] if argv is None else argv
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            # A terminal without our marks and units shows others in their place.
            stream.reconfigure(errors="replace")
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
