"""Verbs that list or look at what there is: devices, techniques, papers, this machine."""

from __future__ import annotations

from typing import Annotated

import typer

from paredown.cli.options import (
    Json,
    NewTokens,
    PromptTokens,
    Random,
    RunName,
    finish,
    progress,
)


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

    finish(work, json)


def calibrate(json: Json = None) -> None:
    """Measure this machine (under a minute) and keep the result."""

    def work() -> object:
        from paredown import verbs

        return verbs.calibrate()

    finish(work, json)


def techniques(
    target: Annotated[
        str | None, typer.Option("--for", metavar="TARGET", help="which apply to it, and why not")
    ] = None,
    random_weights: Random = False,
    run: RunName = None,
    prompt_tokens: PromptTokens = None,
    new_tokens: NewTokens = None,
    json: Json = None,
) -> None:
    """List every technique."""

    def work() -> object:
        from paredown import verbs

        return verbs.techniques(
            target=target,
            random_weights=random_weights,
            run=run,
            prompt_tokens=prompt_tokens,
            new_tokens=new_tokens,
        )

    finish(work, json)


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

    finish(work, json)


def zoo(
    name: Annotated[
        str | None, typer.Argument(help="a network, counted anew", show_default=False)
    ] = None,
    json: Json = None,
) -> None:
    """List the networks: parameters and MACs as counted here, beside the paper's."""

    def work() -> object:
        from paredown import verbs

        return verbs.zoo(name)

    finish(work, json)


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

        return verbs.reproduce(keys or [], all=all_, scale=scale, progress=progress())

    finish(work, json)


def doctor(json: Json = None) -> None:
    """What is installed, what is missing, and how to get it."""

    def work() -> object:
        from paredown import verbs

        return verbs.doctor()

    finish(work, json)
