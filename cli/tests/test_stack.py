"""What the embedded stack tells each service: all it needs, and no one else's secrets."""

import os
import socket
from pathlib import Path

import pytest

from vitascope_cli import ports
from vitascope_cli.data_dir import DataDir
from vitascope_cli.stack import (
    GIVEN,
    NUM_RANKS_VARIABLE,
    PASSED_ON,
    REDIS,
    STOP_STAGES,
    Stack,
    default_models_dir,
    given_servers,
    ignored_variables,
    open_stack,
    read_ready_pid,
    settings_class,
)
from vitascope_common.errors import ConfigurationError
from vitascope_common.settings import PROCESSES

INHERITED = {
    "PATH": "/usr/bin",
    "HOME": "/home/me",
    "VITASCOPE_LOG_LEVEL": "debug",
    "VITASCOPE_OTLP_ENDPOINT": "http://127.0.0.1:4317",
    "VITASCOPE_REDIS_URL": "redis://elsewhere",
    "VITASCOPE_API_KEY": "vs_mine",
    "VITASCOPE_SCHEDULER_LEASE_TTL_MS": "3000",
}


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    one = DataDir(tmp_path / "data")
    one.prepare()
    return one


@pytest.fixture
def stack(data_dir: DataDir) -> Stack:
    return open_stack(data_dir, "127.0.0.1", 0, default_models_dir())


@pytest.mark.parametrize("service", PROCESSES)
def test_every_service_can_read_its_settings_from_its_environment(
    stack: Stack, service: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    environ = stack.environment(service, INHERITED)
    with monkeypatch.context() as patch:
        for name in list(os.environ):
            patch.delenv(name)
        for name, value in environ.items():
            patch.setenv(name, value)
        settings = settings_class(service).load()
    assert settings.port == stack.ports[service]
    assert settings.metrics_port == stack.ports[f"{service}-metrics"]
    assert settings.host == "127.0.0.1"
    assert settings.log_level == "debug"
    assert settings.otlp_endpoint == "http://127.0.0.1:4317"


def test_the_grpc_api_has_a_port_of_its_own_and_shows_what_it_can_do_unless_told_not_to(stack: Stack) -> None:
    environ = stack.environment("gateway", {})
    assert environ["VITASCOPE_GATEWAY_GRPC_PORT"] == str(stack.ports["gateway-grpc"])
    assert stack.grpc_address == f"127.0.0.1:{stack.ports['gateway-grpc']}"
    assert len(set(stack.ports.values())) == len(stack.ports)
    assert environ["VITASCOPE_GATEWAY_GRPC_REFLECTION"] == "true"
    refused = {"VITASCOPE_GATEWAY_GRPC_REFLECTION": "false"}
    assert stack.environment("gateway", refused)["VITASCOPE_GATEWAY_GRPC_REFLECTION"] == "false"
    assert "VITASCOPE_GATEWAY_GRPC_REFLECTION" not in stack.environment("delivery", {})
    assert ignored_variables({**refused, "VITASCOPE_GATEWAY_GRPC_PORT": "1"}) == ["VITASCOPE_GATEWAY_GRPC_PORT"]


def test_nobody_gets_what_is_not_theirs(stack: Stack) -> None:
    environs = {service: stack.environment(service, INHERITED) for service in PROCESSES}
    for service, environ in environs.items():
        assert "VITASCOPE_API_KEY" not in environ
        assert "elsewhere" not in "".join(environ.values())
        assert environ["PATH"] == "/usr/bin"
        assert environ["OMP_NUM_THREADS"] == "1"
        assert ("VITASCOPE_SCHEDULER_LEASE_TTL_MS" in environ) == (service == "scheduler")
    holders = {service for service, environ in environs.items() if stack.signing_key in environ.values()}
    assert holders == {"gateway", "delivery"}
    assert not any("PASSWORD" in name for environ in environs.values() for name in environ)
    assert stack.redis_password not in "".join(environs["delivery"].values())


def test_the_worker_is_told_its_thread_count(stack: Stack) -> None:
    environ = stack.environment("gpu-worker", {})
    assert environ["VITASCOPE_GPU_WORKER_NUM_THREADS"] == str(stack.num_threads)


def test_torchrun_starts_as_many_ranks_as_the_worker_has(stack: Stack) -> None:
    for inherited, expected in (({}, "1"), ({NUM_RANKS_VARIABLE: ""}, "1"), ({NUM_RANKS_VARIABLE: "2"}, "2")):
        [worker] = [spec for spec in stack.specs(inherited) if spec.name == "gpu-worker"]
        assert f"--nproc-per-node={expected}" in worker.command
        assert worker.environ.get(NUM_RANKS_VARIABLE, "") == inherited.get(NUM_RANKS_VARIABLE, "")
    assert settings_class("gpu-worker").env_name("num_ranks") == NUM_RANKS_VARIABLE
    with pytest.raises(ConfigurationError, match=NUM_RANKS_VARIABLE):
        stack.specs({NUM_RANKS_VARIABLE: "two"})


def test_no_password_is_in_a_command_line(stack: Stack) -> None:
    specs = stack.specs(INHERITED)
    assert [spec.name for spec in specs] == [REDIS, *PROCESSES]
    for spec in specs:
        assert stack.redis_password not in " ".join(spec.command)
    configuration = stack.data_dir.redis / "redis.conf"
    assert configuration.stat().st_mode & 0o777 == 0o600
    assert "appendfsync always" in configuration.read_text()


def test_servers_that_are_given_take_the_place_of_its_own(data_dir: DataDir) -> None:
    database, redis = "postgresql+asyncpg://me@db/vitascope", "redis://elsewhere:6379/0"
    inherited = {**INHERITED, "VITASCOPE_DATABASE_URL": database, "VITASCOPE_REDIS_URL": redis}
    given = given_servers({**inherited, "VITASCOPE_OBJECT_STORE_URL": ""})
    stack = open_stack(data_dir, "127.0.0.1", 0, default_models_dir(), given=given)
    assert (stack.database_url, stack.redis_url) == (database, redis)
    scheduler = stack.environment("scheduler", inherited)
    assert scheduler["VITASCOPE_DATABASE_URL"] == database
    assert scheduler["VITASCOPE_REDIS_URL"] == redis
    assert scheduler["VITASCOPE_BROKER_URL"].endswith(f"@127.0.0.1:{stack.ports[REDIS]}/1")
    assert database not in stack.environment("gpu-worker", inherited).values()
    assert stack.environment("gpu-worker", inherited)["VITASCOPE_OBJECT_STORE_URL"] == data_dir.object_store_url
    assert [spec.name for spec in stack.specs({})] == [REDIS, *PROCESSES], "its own is the broker still"
    both = {**given, "VITASCOPE_BROKER_URL": "redis://elsewhere:6379/1"}
    with_both = open_stack(data_dir, "127.0.0.1", 0, default_models_dir(), given=both)
    assert [spec.name for spec in with_both.specs({})] == list(PROCESSES)


def test_redis_stops_last_and_nobody_is_forgotten() -> None:
    assert set(STOP_STAGES) == {REDIS, *PROCESSES}
    assert all(STOP_STAGES[REDIS] > STOP_STAGES[service] for service in PROCESSES)


def test_variables_that_are_not_taken_are_named() -> None:
    assert ignored_variables({**INHERITED, "VITASCOPE_GATEWAY_PORT": "9000", "VITASCOPE_SIGNING_KEY": "mine"}) == [
        "VITASCOPE_GATEWAY_PORT",
        "VITASCOPE_SIGNING_KEY",
    ]
    used = (*PASSED_ON, *GIVEN, "VITASCOPE_CLI_DATA_DIR", "VITASCOPE_MODELS_DIR", "VITASCOPE_GPU_WORKER_NUM_THREADS")
    assert ignored_variables(dict.fromkeys(used, "")) == []


def test_misspelt_variables_are_refused() -> None:
    wrong = ("VITASCOPE_LOG_LEVLE", "VITASCOPE_SCHEDULER_TIKC_MS", "vitascope_log_level", "VITASCOPE_CLI_DATADIR")
    with pytest.raises(ConfigurationError) as error:
        ignored_variables({**INHERITED, **dict.fromkeys(wrong, "")})
    assert all(f"{name}: unknown variable" in error.value.message for name in wrong)
    assert "did you mean VITASCOPE_LOG_LEVEL?" in error.value.message
    assert "VITASCOPE_REDIS_URL" not in error.value.message


@pytest.mark.parametrize("service", PROCESSES)
def test_services_reach_each_other_without_a_proxy(stack: Stack, service: str) -> None:
    inherited = {"http_proxy": "http://proxy:3128", "no_proxy": "corp.example, 10.0.0.1", "NO_PROXY": "localhost"}
    environ = stack.environment(service, inherited)
    assert environ["http_proxy"] == "http://proxy:3128"
    assert environ["no_proxy"] == environ["NO_PROXY"] == "corp.example,10.0.0.1,localhost,127.0.0.1,::1"
    assert stack.environment(service, {})["no_proxy"] == "127.0.0.1,localhost,::1"


def test_addresses_stay_from_run_to_run(data_dir: DataDir, stack: Stack) -> None:
    again = open_stack(data_dir, "127.0.0.1", 0, default_models_dir())
    assert again.ports == stack.ports
    assert again.signing_key == stack.signing_key
    assert len(set(stack.ports.values())) == len(stack.ports)
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", stack.ports["delivery"]))
        thief.listen()
        moved = open_stack(data_dir, "127.0.0.1", 0, default_models_dir())
        assert moved.ports["delivery"] != stack.ports["delivery"]
        assert moved.ports["gateway"] == stack.ports["gateway"]


def test_the_port_of_the_api_is_nobody_elses(data_dir: DataDir, stack: Stack) -> None:
    wanted = stack.ports["scheduler"]
    again = open_stack(data_dir, "127.0.0.1", wanted, default_models_dir())
    assert again.ports["gateway"] == wanted
    assert set(again.ports) == set(stack.ports)
    assert len(set(again.ports.values())) == len(again.ports)
    moved = {name for name in stack.ports if again.ports[name] != stack.ports[name]}
    assert moved == {"gateway", "scheduler"}
    assert open_stack(data_dir, "127.0.0.1", 0, default_models_dir()).ports["gateway"] == stack.ports["gateway"]


def test_a_taken_port_is_refused_in_words(data_dir: DataDir) -> None:
    with socket.socket() as thief:
        thief.bind(("127.0.0.1", 0))
        thief.listen()
        port = thief.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"Port {port} on 127.0.0.1 cannot be used"):
            open_stack(data_dir, "127.0.0.1", port, default_models_dir())


def test_a_host_that_is_not_ours_is_refused(data_dir: DataDir) -> None:
    with pytest.raises(ConfigurationError, match=r"203\.0\.113\.7"):
        open_stack(data_dir, "203.0.113.7", 0, default_models_dir())


def test_a_folder_without_models_is_refused(data_dir: DataDir, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="There are no models"):
        open_stack(data_dir, "127.0.0.1", 0, tmp_path)


def test_ports_lie_below_those_of_outgoing_connections() -> None:
    chosen = ports.choose(["a", "b", "c"], {})
    assert len(set(chosen.values())) == 3
    assert all(ports.FIRST_PORT <= port < 32768 for port in chosen.values())


def test_hosts() -> None:
    assert ports.url("::1", 80) == "http://[::1]:80"
    assert ports.local_host("0.0.0.0") == "127.0.0.1"
    assert ports.public_host("127.0.0.1") == "127.0.0.1"
    assert not ports.is_wildcard(ports.public_host("0.0.0.0"))


def test_readiness_is_read_from_the_metrics() -> None:
    pid = 'vitascope_pid{{service="gateway"}} {}\n'
    ready = 'vitascope_ready{service="gateway"} 1.0\n'
    assert read_ready_pid("gateway", ready + pid.format("4194303.0")) == 4194303
    assert read_ready_pid("gateway", ready + pid.format("4.194303e+06")) == 4194303
    assert read_ready_pid("gateway", ready) is None
    assert read_ready_pid("gateway", ready.replace("1.0", "0.0") + pid.format("7.0")) is None
    assert read_ready_pid("prompt", ready + pid.format("7.0")) is None
    assert read_ready_pid("gateway", "") is None
