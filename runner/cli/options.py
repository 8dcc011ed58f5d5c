"""What commands share: their common options, and the App behind them."""

from __future__ import annotations

from typing import Annotated

import typer

from runner.app import App
from runner.config import Settings

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its beginning, or its last 8 characters.")]


def settings_of(context: typer.Context) -> Settings:
    settings: Settings = context.obj
    return settings


def app_of(context: typer.Context) -> App:
    return App(settings_of(context))
