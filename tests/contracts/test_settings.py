"""Settings: names follow the folder, secrets have no default, mistakes stop the start-up."""

import inspect
import os
import re
import subprocess
import sys
from importlib import import_module

import pytest
from pydantic import SecretStr

from vitascope_common import settings as shared
from vitascope_common.settings import PROCESSES, ServiceSettings, package_of, service_prefix

SECRET = re.compile(r"(^|_)(secret|password|token|private)(_|$)|(^|_)key$|_key_|^(redis|broker|database)_url$")


def settings_of(service: str) -> type[ServiceSettings]:
    module = import_module(f"{package_of(service)}.settings")
    found = [
        cls
        for _, cls in inspect.getmembers(module, inspect.isclass)
        if issubclass(cls, ServiceSettings) and cls.__module__ == module.__name__
    ]
    assert len(found) == 1, f"{module.__name__} holds one settings class, found {found}"
    return found[0]


def shared_fields() -> set[str]:
    mixins = [cls for _, cls in inspect.getmembers(shared, inspect.isclass) if issubclass(cls, ServiceSettings)]
    return {field for cls in mixins for field in cls.model_fields} - {"port", "metrics_port"}


@pytest.mark.parametrize("service", PROCESSES)
def test_variables_follow_the_naming_rule(service: str) -> None:
    settings = settings_of(service)
    assert settings.service == service
    assert settings.model_config.get("frozen") is True
    names = {field: settings.env_name(field) for field in settings.model_fields}
    for field, name in names.items():
        expected = "VITASCOPE_" if field in shared_fields() else service_prefix(service)
        assert name == expected + field.upper()
    assert len(set(names.values())) == len(names)


@pytest.mark.parametrize("service", PROCESSES)
def test_no_variable_has_two_meanings(service: str) -> None:
    """VITASCOPE_PROMPT_ADDRESS is shared: the prompt service must not have a field `address` of its own."""
    settings = settings_of(service)
    own = {settings.env_name(field) for field in settings.model_fields if field not in shared_fields()}
    assert not own & {f"VITASCOPE_{field.upper()}" for field in shared_fields()}


@pytest.mark.parametrize("service", PROCESSES)
def test_no_secret_has_a_default(service: str) -> None:
    for name, field in settings_of(service).model_fields.items():
        is_secret_type = "SecretStr" in str(field.annotation)
        if is_secret_type or SECRET.search(name):
            assert field.is_required() or field.default is None, f"{name} has a default"
            assert is_secret_type or not field.repr, f"{name} would be shown in a repr"
            assert not isinstance(field.default, SecretStr)


@pytest.mark.parametrize("service", ["gateway", "scheduler", "webhooks"])
def test_a_misspelt_variable_stops_the_start_with_its_name(service: str) -> None:
    prefix = service_prefix(service)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
    environment |= {f"{prefix}METRICS_PROT": "1", "VITASCOPE_LOG_LEVLE": "info"}
    command = [sys.executable, "-m", package_of(service)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2, done.stderr
    for name in (f"{prefix}METRICS_PROT", f"{prefix}METRICS_PORT", "VITASCOPE_LOG_LEVLE", "VITASCOPE_LOG_LEVEL"):
        assert name in done.stderr
    assert "Traceback" not in done.stderr
