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
)


def device(
    name: Annotated[
        str | None, typer.Argument(help="a device, or a TOML file", show_default=False)
    ] = None,
    json: Json = None,
) -> None:
    """List the devices, or show one."""
    finish("verbs:device", locals())


def calibrate(
    deep: Annotated[
        bool,
        typer.Option("--deep", help="learn what operators take on each backend; up to 10 minutes"),
    ] = False,
    json: Json = None,
) -> None:
    """Measure this machine (under a minute) and keep the result."""
    finish("verbs:calibrate", locals())


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
    finish("verbs:techniques", locals())


def papers(
    key: Annotated[
        str | None, typer.Argument(help="a key of the catalogue", show_default=False)
    ] = None,
    json: Json = None,
) -> None:
    """List the papers that have a working part here."""
    finish("verbs:papers", locals())


def zoo(
    name: Annotated[
        str | None, typer.Argument(help="a network, counted anew", show_default=False)
    ] = None,
    json: Json = None,
) -> None:
    """List the networks: parameters and MACs as counted here, beside the paper's."""
    finish("verbs:zoo", locals())


def reproduce(
    keys: Annotated[
        list[str] | None, typer.Argument(help="keys of the catalogue", metavar="KEY...")
    ] = None,
    all: Annotated[bool, typer.Option("--all", help="every card")] = False,
    scale: Annotated[
        str, typer.Option("--scale", help="quick (under a minute each) or full")
    ] = "quick",
    json: Json = None,
) -> None:
    """Run claim cards: small honest experiments of a paper's headline."""
    finish("verbs:reproduce", locals(), listen=True)


def doctor(json: Json = None) -> None:
    """What is installed, what is missing, and how to get it."""
    finish("verbs:doctor", locals())
