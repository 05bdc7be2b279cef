import os

import pytest
from pydantic import SecretStr, ValidationError

from vitascope_common.errors import ConfigurationError
from vitascope_common.settings import (
    SERVICES,
    UsesDatabase,
    UsesMediaLinks,
    UsesObjectStore,
    UsesPrompt,
    UsesRedis,
    service_prefix,
)

SIGNING_KEY = "k" * 32
REQUIRED = {
    "VITASCOPE_DATABASE_URL": "sqlite+aiosqlite:///x.db",
    "VITASCOPE_REDIS_URL": "redis://:hunter2@127.0.0.1:6379/0",
    "VITASCOPE_OBJECT_STORE_URL": "file:///objects",
    "VITASCOPE_SIGNING_KEY": SIGNING_KEY,
}


class Settings(UsesDatabase, UsesRedis, UsesObjectStore, UsesMediaLinks, UsesPrompt):
    service = "gpu-worker"
    port: int = 7000
    num_slots: int = 1
    engines: tuple[str, ...] = ()
    token: SecretStr = SecretStr("")


@pytest.fixture(autouse=True)
def environment(monkeypatch):
    for name in list(os.environ):
        if name.upper().startswith("VITASCOPE_"):
            monkeypatch.delenv(name)
    for name, value in REQUIRED.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def refusal(cls=Settings, **values):
    with pytest.raises(ConfigurationError) as caught:
        cls.load(**values)
    return caught.value.message


def test_shared_and_own_variables_are_read(environment):
    environment.setenv("VITASCOPE_GPU_WORKER_NUM_SLOTS", "3")
    environment.setenv("VITASCOPE_GPU_WORKER_PORT", "7100")
    environment.setenv("VITASCOPE_GPU_WORKER_ENGINES", '["native"]')
    environment.setenv("VITASCOPE_HOST", "0.0.0.0")
    environment.setenv("VITASCOPE_LOG_LEVEL", "DEBUG")
    settings = Settings.load()
    assert (settings.num_slots, settings.port, settings.engines) == (3, 7100, ("native",))
    assert (settings.host, settings.log_level) == ("0.0.0.0", "debug")
    assert settings.redis_url.get_secret_value() == REQUIRED["VITASCOPE_REDIS_URL"]


def test_an_empty_variable_counts_as_unset(environment):
    environment.setenv("VITASCOPE_GPU_WORKER_NUM_SLOTS", "")
    environment.setenv("VITASCOPE_OTLP_ENDPOINT", "")
    settings = Settings.load()
    assert (settings.num_slots, settings.otlp_endpoint) == (1, None)


def test_settings_cannot_be_changed():
    with pytest.raises(ValidationError):
        Settings.load().port = 1


def test_everything_missing_is_named_at_once(environment):
    for name in REQUIRED:
        environment.delenv(name)
    message = refusal()
    for name in REQUIRED:
        assert f"{name}: is not set" in message


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("VITASCOPE_REDIS_ULR", "VITASCOPE_REDIS_URL"),
        ("VITASCOPE_GPU_WORKER_NUM_SLOT", "VITASCOPE_GPU_WORKER_NUM_SLOTS"),
        ("VITASCOPE_PROMPT_ADRESS", "VITASCOPE_PROMPT_ADDRESS"),
        ("vitascope_host", "VITASCOPE_HOST"),
    ],
)
def test_a_misspelt_variable_is_named_with_the_likely_one(environment, wrong, right):
    environment.setenv(wrong, "1")
    assert f"{wrong}: unknown variable; did you mean {right}?" in refusal()


def test_a_variable_like_nothing_we_know_is_named_too(environment):
    environment.setenv("VITASCOPE_QQQQ", "1")
    assert "VITASCOPE_QQQQ: unknown variable" in refusal()


@pytest.mark.parametrize(
    "name",
    [
        "VITASCOPE_PROMPT_PORT",
        "VITASCOPE_GATEWAY_WHATEVER",
        "VITASCOPE_API_KEY",
        "VITASCOPE_BASE_URL",
        "VITASCOPE_TEST_ALL",
        "VITASCOPE_CLI_COLOUR",
        "VITASCOPE_BROKER_URL",
        "OTHER_VARIABLE",
    ],
)
def test_what_others_read_is_not_our_concern(environment, name):
    environment.setenv(name, "1")
    Settings.load()


def test_wrong_values_are_named_by_their_variable(environment):
    environment.setenv("VITASCOPE_GPU_WORKER_PORT", "eighty")
    environment.setenv("VITASCOPE_LOG_FORMAT", "xml")
    message = refusal()
    assert "VITASCOPE_GPU_WORKER_PORT: Input should be a valid integer" in message
    assert "VITASCOPE_LOG_FORMAT: Input should be 'auto', 'json' or 'console'" in message


def test_a_value_that_is_not_json_is_named(environment):
    environment.setenv("VITASCOPE_GPU_WORKER_ENGINES", "[native")
    assert "VITASCOPE_GPU_WORKER_ENGINES: not valid JSON" in refusal()


def test_no_secret_shows_in_an_error_or_a_repr(environment):
    settings = Settings.load(database_url="postgresql+asyncpg://u:hunter2@h/db")
    for text in (repr(settings), str(settings)):
        assert "hunter2" not in text
        assert SIGNING_KEY not in text
    environment.setenv("VITASCOPE_SIGNING_KEY", "short-hunter2")
    environment.setenv("VITASCOPE_GPU_WORKER_PORT", "hunter2")
    message = refusal()
    assert "VITASCOPE_SIGNING_KEY: every key needs at least 32 characters" in message
    assert "hunter2" not in message


def test_an_unknown_argument_is_refused():
    assert "prot" in refusal(prot=1)


def test_each_service_begins_its_own_way():
    prefixes = [service_prefix(service) for service in SERVICES]
    assert len(set(prefixes)) == len(SERVICES)
    assert service_prefix("gpu-worker") == "VITASCOPE_GPU_WORKER_"


def test_a_redis_url_of_no_known_form_is_refused_without_its_password(environment):
    environment.setenv("VITASCOPE_REDIS_URL", "redis+cluster://:hunter2@a:6379/3")
    message = refusal()
    assert "VITASCOPE_REDIS_URL: a redis+cluster:// URL ends after its hosts" in message
    assert "hunter2" not in message
