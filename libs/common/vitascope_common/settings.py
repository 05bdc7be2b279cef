"""Settings: what every service reads from the environment, and how a mistake in it stops the start-up.

A shared field reads `VITASCOPE_<FIELD>`; a field that a service declares in its subclass (and `port`, `metrics_port`)
reads `VITASCOPE_<SERVICE>_<FIELD>`. The service's name is its folder's: `gpu-worker` reads `VITASCOPE_GPU_WORKER_…`.

    class GatewaySettings(UsesDatabase, UsesRedis):
        service = "gateway"
        port: int = 8000            # VITASCOPE_GATEWAY_PORT

    settings = GatewaySettings.load()

`load` is called once, in `__main__`; nothing else reads the environment.
"""

import difflib
import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, SecretStr, ValidationError, field_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from vitascope_common import redis_url
from vitascope_common.errors import ConfigurationError

PREFIX = "VITASCOPE_"
SERVICES = ("gateway", "prompt", "scheduler", "gpu-worker", "postproc", "delivery")
HOSTS: Mapping[str, str] = {"webhooks": "scheduler"}
"""Processes of their own, with settings of their own, that live in a service's package: as a package inside it."""
PROCESSES = (*SERVICES, *HOSTS)
FOREIGN_NAMES = frozenset({"VITASCOPE_TEST_ALL", "VITASCOPE_API_KEY", "VITASCOPE_BASE_URL"})
"""Read by the tests, the SDKs and the command line, never by a service."""
FOREIGN_PREFIXES = ("VITASCOPE_CLI_",)

_OWN_FIELDS = frozenset({"port", "metrics_port"})


def service_prefix(service: str) -> str:
    """Return how the variables of a service begin: `gpu-worker` gives `VITASCOPE_GPU_WORKER_`."""
    return f"{PREFIX}{service.upper().replace('-', '_')}_"


def package_of(process: str) -> str:
    """Return the package whose `__main__` is a process: `gpu-worker` gives `vitascope_gpu_worker`."""
    package = f"vitascope_{HOSTS.get(process, process).replace('-', '_')}"
    return f"{package}.{process}" if process in HOSTS else package


class _Environment(PydanticBaseSettingsSource):
    """The process environment under our naming rule; an empty variable counts as unset."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        settings: Any = self.settings_cls
        value: Any = os.environ.get(settings.env_name(field_name)) or None
        is_complex = value is not None and self.field_is_complex(field)
        return value, field_name, is_complex

    def __call__(self) -> dict[str, Any]:
        found: dict[str, Any] = {}
        owner: Any = self.settings_cls
        for name, field in self.settings_cls.model_fields.items():
            value, key, is_complex = self.get_field_value(field, name)
            if value is not None:
                try:
                    found[key] = self.prepare_field_value(name, field, value, is_complex)
                except ValueError as error:
                    raise ConfigurationError(f"{owner.env_name(name)}: not valid JSON.") from error
        return found


class ServiceSettings(BaseSettings):
    """What every service reads. What only some need comes from the `Uses…` classes below: a service names what it uses,
    so that no pod is given a secret that it has no use for."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    service: ClassVar[str] = ""

    host: str = "127.0.0.1"
    """Interface on which services listen."""
    data_dir: Path | None = None
    """Local scratch space (checkpoints, caches). None: a temporary folder."""
    otlp_endpoint: str | None = None
    """OTLP gRPC collector, `http://host:4317`. None: no traces are exported."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    log_format: Literal["auto", "json", "console"] = "auto"
    """auto: console on a terminal, JSON otherwise."""

    port: int = Field(default=0, ge=0, le=65535)
    """0: any free port."""
    metrics_port: int = Field(default=0, ge=0, le=65535)
    """0: any free port."""

    @field_validator("log_level", mode="before")
    @classmethod
    def _in_lower_case(cls, value: Any) -> Any:
        return value.lower() if isinstance(value, str) else value

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Read arguments, then the environment; no .env file is ever picked up by accident."""
        return (init_settings, _Environment(settings_cls))

    @classmethod
    def env_name(cls, field: str) -> str:
        """Return the variable that a field reads."""
        return (PREFIX if field in _shared_fields() else service_prefix(cls.service)) + field.upper()

    @classmethod
    def load(cls, **values: Any) -> Self:
        """Build the settings from the environment (`values` win over it, for tests).

        Raises:
            ConfigurationError: names every variable that is missing, wrong or misspelt; holds no secret value.
        """
        problems = _misspelt(cls, os.environ)
        try:
            settings = cls(**values)
        except ValidationError as error:
            for problem in error.errors(include_input=False, include_context=False, include_url=False):
                field = str(problem["loc"][0]) if problem["loc"] else ""
                path = ".".join(str(part) for part in problem["loc"][1:])
                name = cls.env_name(field) if field in cls.model_fields else field or cls.__name__
                text = (
                    "is not set"
                    if problem["type"] == "missing" and not path
                    else problem["msg"].removeprefix("Value error, ")
                )
                problems.append(f"{name}{'.' + path if path else ''}: {text}")
        if problems:
            raise ConfigurationError(
                f"{cls.service or cls.__name__} cannot start:\n" + "\n".join(f"  {line}" for line in problems)
            )
        return settings


class UsesDatabase(ServiceSettings):
    """For the services that read or write SQL."""

    database_url: str = Field(repr=False)
    """SQLAlchemy URL: `sqlite+aiosqlite:///…` or `postgresql+asyncpg://…`. It may hold a password: never log it."""


class UsesRedis(ServiceSettings):
    """For the services that touch queues or events."""

    redis_url: SecretStr
    """`redis://…`, `redis+sentinel://…/MASTER_NAME` or `redis+cluster://…`, see redis_url.py. May hold a password."""

    @field_validator("redis_url")
    @classmethod
    def _is_redis_url(cls, value: SecretStr) -> SecretStr:
        try:
            redis_url.parse(value.get_secret_value())
        except ConfigurationError as error:
            raise ValueError(error.message) from None
        return value


class UsesBroker(ServiceSettings):
    """For the two ends of Celery."""

    broker_url: SecretStr
    """A Redis of its own in production, standalone or Sentinel."""


class UsesObjectStore(ServiceSettings):
    """For the services that read or write objects."""

    object_store_url: str
    """`file:///directory` or `s3://bucket/prefix?endpoint=https://…&region=…`."""
    s3_access_key: SecretStr | None = None
    s3_secret_key: SecretStr | None = None
    """Both None: boto3 looks for credentials where it usually does (instance role, web identity)."""


class UsesModels(ServiceSettings):
    """For the services that read model cards."""

    models_dir: Path


class UsesPrompt(ServiceSettings):
    """For the callers of the prompt service."""

    prompt_address: str = "127.0.0.1:50051"


class UsesScheduler(ServiceSettings):
    """For the callers of the scheduler."""

    scheduler_address: str = "127.0.0.1:50052"


class UsesMediaLinks(ServiceSettings):
    """For those who sign or verify links to media."""

    signing_key: SecretStr
    """HMAC key of media links, at least 32 characters. Several, newest first, separated by commas: the first signs,
    all verify."""
    delivery_url: str = "http://127.0.0.1:8080"
    """Where clients reach delivery (or the CDN before it); no slash at the end."""

    @field_validator("signing_key")
    @classmethod
    def _is_long_enough(cls, value: SecretStr) -> SecretStr:
        if any(len(part) < 32 for part in value.get_secret_value().split(",")):
            raise ValueError("every key needs at least 32 characters; `openssl rand -hex 32` makes one")
        return value

    @field_validator("delivery_url")
    @classmethod
    def _is_base_url(cls, value: str) -> str:
        if not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value.rstrip("/")


class UsesUrls(ServiceSettings):
    """For the services that call or fetch URLs which somebody else chose."""

    url_allowed_networks: str = ""
    """Networks such URLs may lead to although they are not public, `10.20.0.0/16,fd00:1::/64`; by plain http, too."""

    @field_validator("url_allowed_networks")
    @classmethod
    def _are_networks(cls, value: str) -> str:
        for one in filter(None, map(str.strip, value.split(","))):
            try:
                ipaddress.ip_network(one)
            except ValueError as error:
                raise ValueError(f"{error}; it must be networks, separated by commas") from None
        return value

    @property
    def allowed_networks(self) -> list[str]:
        """The networks, one by one."""
        return [one for one in map(str.strip, self.url_allowed_networks.split(",")) if one]


def _shared_fields() -> frozenset[str]:
    """Name the fields that read `VITASCOPE_<FIELD>`."""
    classes: list[type[ServiceSettings]] = [ServiceSettings, *ServiceSettings.__subclasses__()]
    mixins = [one for one in classes if one.__module__ == __name__]
    return frozenset(field for one in mixins for field in one.model_fields) - _OWN_FIELDS


def _misspelt(settings: type[ServiceSettings], environ: Mapping[str, str]) -> list[str]:
    """Name each variable of ours that nothing reads; those of other services are theirs to check."""
    known = {settings.env_name(field) for field in {*settings.model_fields, *_shared_fields()}}
    others = tuple(service_prefix(one) for one in PROCESSES if one != settings.service) + FOREIGN_PREFIXES
    problems = []
    for name in sorted(environ):
        upper = name.upper()
        if not upper.startswith(PREFIX) or name in known or name in FOREIGN_NAMES:
            continue
        # Some shared names begin like another service's: PROMPT_ADRESS is ours to notice, PROMPT_PORT is not.
        is_foreign = name.startswith(others)
        candidates = {one for one in known if one.startswith(others)} if is_foreign else known | FOREIGN_NAMES
        close = difflib.get_close_matches(upper, candidates, n=1, cutoff=0.92 if is_foreign else 0.6)
        if is_foreign and not close:
            continue
        problems.append(f"{name}: unknown variable" + (f"; did you mean {close[0]}?" if close else ""))
    return problems
