"""What commands share: their common options, and the App behind them."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from runner.app import App
from runner.config import Settings

AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
RunId = Annotated[str, typer.Argument(metavar="RUN", help="A run's id, its beginning, or its last 8 characters.")]

Params = Annotated[list[str] | None, typer.Option("--param", "-p", metavar="NAME=VALUE", help="A pipeline parameter.")]
LogicalTime = Annotated[datetime | None, typer.Option(help="What time the data is for (UTC).")]
Ref = Annotated[str | None, typer.Option(help="Branch, tag or commit of the logic [default: RUNNER_PRODUCTION_REF].")]
Repo = Annotated[
    str | None,
    typer.Option(help="The logic repository's URL [default: RUNNER_LOGIC_REPO]; with --working-tree, its folder."),
]
LogicPath = Annotated[str, typer.Option("--logic-path", help="The folder in the repository that the logic is in.")]
WorkingTree = Annotated[
    bool,
    typer.Option("--working-tree", help="Run what is there now, committed or not: in the current folder, or --repo."),
]


def settings_of(context: typer.Context) -> Settings:
    settings: Settings = context.obj
    return settings


def app_of(context: typer.Context) -> App:
    return App(settings_of(context))
