"""Options and arguments that several verbs share, and how a verb ends."""

from __future__ import annotations

import importlib
from typing import Annotated, Any

import typer

from paredown.cli import outcome

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
RunName = Annotated[
    str | None, typer.Option("--run", help="hf: what one run is: forward (default) or generate")
]
PromptTokens = Annotated[
    int | None, typer.Option("--prompt-tokens", min=1, help="generate: tokens of the prompt")
]
NewTokens = Annotated[
    int | None, typer.Option("--new-tokens", min=1, help="generate: tokens to make (16)")
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


def finish(
    verb: str, arguments: dict[str, Any], *, spread: str | None = None, listen: bool = False
) -> None:
    """Do a verb and leave with its exit code.

    ``verb`` names the function that does it, as ``MODULE:FUNCTION`` of this package, imported only
    now. ``arguments`` are the verb's own, by the function's names; what was not given is left to
    the function. ``json`` among them says where the document goes; ``spread`` names those that the
    function takes one by one; ``listen``: it reports progress.
    """
    given = {k: v for k, v in arguments.items() if v is not None}
    json = given.pop("json", None)

    def work() -> object:
        module, _, name = verb.partition(":")
        function = getattr(importlib.import_module(f"paredown.{module}"), name)
        if listen:
            from paredown.report.progress import on_stderr

            given["progress"] = on_stderr()
        found = function(*(given.pop(spread) if spread else ()), **given)
        return getattr(found, "doc", found)

    raise typer.Exit(outcome.run(work, json=json))
