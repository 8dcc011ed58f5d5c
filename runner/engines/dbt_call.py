"""dbt, called in this process: as its command line would be, but with none of its options from the environment."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from click import Command
    from dbt.cli.main import dbtRunnerResult


def call(arguments: Sequence[str], listener: Callable[[Any], None]) -> dbtRunnerResult:
    """What dbt came to; `listener` gets its events."""
    from dbt.cli.main import cli, dbtRunner

    _ignore_environment(cli)
    return dbtRunner(callbacks=[listener]).invoke(list(arguments))


def _ignore_environment(command: Command) -> None:
    """Take from dbt's options their environment variables: `env` is the project's, options are the spec's."""
    for option in command.params:
        option.envvar = None
    for each in getattr(command, "commands", {}).values():
        _ignore_environment(each)
