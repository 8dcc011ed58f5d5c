"""Settings: the only place that reads the environment. Twelve-factor `RUNNER_*`, frozen once read."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from runner.model.errors import SpecError
from runner.model.policy import LEASE_S
from runner.model.strict import explain


def _split(value: object) -> object:
    """`a, b` as a person writes it in a variable."""
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


class Settings(BaseSettings):
    """Everything that differs between a laptop and Fargate. Nothing set at all means the embedded services."""

    model_config = SettingsConfigDict(env_prefix="RUNNER_", frozen=True, extra="ignore")

    home: Path = Path(".runner")
    """Where the embedded services keep their state, and workers their caches."""
    ledger_url: SecretStr | None = None
    """postgresql://user:password@host:port/database"""
    bucket: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]$")] = "stage-runner-lake"
    queue_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9_-]{1,40}$")] = "stage-runner-"
    """Queues are `<prefix><stage>` and `<prefix><stage>-dlq`."""
    catalog: Literal["sql", "glue"] = "sql"
    """Where Iceberg tables are listed: beside the ledger in Postgres, or in AWS Glue."""
    source_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = ()
    """Hosts that extract may fetch from: names, `*.domain`, and addresses or CIDR blocks for private ones."""
    package_hub: Annotated[str, Field(pattern=r"^https?://[^\s]+[^/\s]$")] = "https://hub.getdbt.com"
    """The index that dbt packages named `namespace/name` are looked up in."""
    package_hosts: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = (
        "hub.getdbt.com",
        "codeload.github.com",
        "github.com",
    )
    """Hosts that dbt packages may be fetched from, written as for `source_hosts`."""
    secret_prefix: Annotated[str, Field(pattern=r"^[A-Za-z0-9/_+=.@-]{1,100}$")] = "stage-runner/"  # noqa: S105 - no secret
    """Put before the name of each secret that is looked up in AWS Secrets Manager."""
    logic_repo: str | None = None
    """The repository that `submit --pipeline` and `run-pipeline` read when none is given."""
    logic_hosts: Annotated[tuple[str, ...] | None, NoDecode, BeforeValidator(_split)] = None
    """Hosts of logic repositories, written as `source_hosts`. Not set: any with the embedded services, else none."""
    logic_schemes: Annotated[tuple[Literal["https", "http", "file"], ...] | None, NoDecode, BeforeValidator(_split)] = (
        None
    )
    """Ways to logic repositories. Not set: all with the embedded services, else https."""
    logic_tokens: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)] = ()
    """For hosts of private repositories, the name of the secret that opens them: `host=secret`, `host=user:secret`."""
    git_cache_mib: Annotated[int, Field(ge=16)] = 2048
    """On disk, for what was fetched of all repositories; and for what one fetch may bring."""
    production_ref: Annotated[str, Field(min_length=1, max_length=250)] = "main"
    """The branch of a logic repository whose commits may publish to other than `dev_` datasets."""
    emulator: Path = Path(".venv-emulator/bin/ministack")
    """The emulator's program, for the embedded services."""
    lease_s: Annotated[float, Field(ge=1, le=3600)] = LEASE_S
    """Seconds after which the run of a worker that is heard of no more goes on elsewhere; all workers have the same."""
    input_cache_mib: Annotated[int, Field(ge=64)] = 10240
    """On disk, for inputs' files that jobs have read."""
    child_uids: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,8}-[1-9][0-9]{0,8}$")] = "61000-61099"
    """The user ids that jobs run under where the worker is root: one a worker of this machine."""
    log_format: Literal["auto", "json", "text"] = "auto"
    aws_endpoint_url: Annotated[str | None, Field(validation_alias="AWS_ENDPOINT_URL")] = None
    aws_region: Annotated[str, Field(validation_alias="AWS_REGION")] = "us-east-1"

    @property
    def embedded(self) -> bool:
        """True where no ledger is configured: the services of `runner up` are used."""
        return self.ledger_url is None

    @property
    def cache(self) -> Path:
        return self.home / "cache"


def load_settings() -> Settings:
    """Read the environment. Raises `SpecError` naming the variable, what was expected and what came."""
    try:
        return Settings()
    except ValidationError as exc:
        field, _, rest = explain(exc).partition(":")
        name = field if field.startswith("AWS_") else f"RUNNER_{field.upper()}"
        raise SpecError(f"environment: {name}:{rest}", subject=name) from exc


def process_environment() -> dict[str, str]:
    """The environment that git may see: how to find programs, certificates and proxies, and nothing else."""
    wanted = ("PATH", "SSL_CERT_FILE", "SSL_CERT_DIR", "GIT_SSL_CAINFO", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY")
    names = [*wanted, *(name.lower() for name in wanted if name.endswith("PROXY"))]
    return {name: os.environ[name] for name in names if name in os.environ}


def home_environment() -> dict[str, str]:
    """Where a person's own git configuration is: what it ignores counts for their working tree."""
    wanted = ("HOME", "XDG_CONFIG_HOME", "GIT_CONFIG_GLOBAL")
    return {name: os.environ[name] for name in wanted if name in os.environ}
