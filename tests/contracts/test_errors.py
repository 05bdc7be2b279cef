"""The error map: one code per class, one status per kind, and each edge knows every kind."""

from importlib import import_module
from pathlib import Path

import pytest

from vitascope_common import errors
from vitascope_common.errors import HTTP_STATUS, ErrorKind, VitascopeError, error_from, http_status
from vitascope_common.grpc_errors import STATUS, to_status

ROOT = Path(__file__).parents[2]


def every_error() -> list[type[VitascopeError]]:
    """Return every class below VitascopeError that an errors.py defines, in libs/common or in a service.

    Others (an edge's own, a double of a test) never cross an edge, and whether they are loaded depends on the run.
    """
    modules = {import_module(f"{path.parent.name}.errors") for path in ROOT.glob("services/*/vitascope_*/errors.py")}
    names = {errors.__name__, *(module.__name__ for module in modules)}
    found, todo = [], [VitascopeError]
    while todo:
        children = todo.pop().__subclasses__()
        found += children
        todo += children
    return sorted({cls for cls in found if cls.__module__ in names}, key=lambda cls: cls.__name__)


ERRORS = every_error()


def test_every_class_has_its_own_code() -> None:
    by_code: dict[str, str] = {}
    for cls in ERRORS:
        assert "code" in vars(cls), f"{cls.__name__} inherits its code"
        other = by_code.setdefault(cls.code, cls.__name__)
        assert other == cls.__name__, f"{other} and {cls.__name__} share the code {cls.code}"


@pytest.mark.parametrize("cls", ERRORS)
def test_a_class_tells_what_it_is(cls: type[VitascopeError]) -> None:
    assert cls.__name__.endswith("Error")
    assert cls.code == cls.code.lower().replace(" ", "_").replace("-", "_")
    assert cls.default_message.endswith(".")
    if cls.__module__ == errors.__name__:
        tree = next(line for line in (errors.__doc__ or "").splitlines() if f" {cls.__name__} " in line)
        assert cls.code in tree.split(), f"the tree at the top of errors.py shows {cls.__name__} with another code"


def test_every_kind_maps_to_one_status_at_each_edge() -> None:
    assert set(HTTP_STATUS) == set(STATUS) == set(ErrorKind)
    assert len(set(STATUS.values())) == len(ErrorKind), "two kinds become one gRPC status and cannot be told apart"
    assert all(400 <= status < 600 for status in HTTP_STATUS.values())


@pytest.mark.parametrize("cls", ERRORS)
def test_an_error_survives_the_edges(cls: type[VitascopeError]) -> None:
    error = cls("what to do", param="prompt")
    assert http_status(error) in {*HTTP_STATUS.values(), 403, 451}
    status = to_status(error)
    assert status.message == "what to do"
    rebuilt = error_from(error.code, error.kind, status.message, "prompt")
    assert (rebuilt.code, rebuilt.kind, rebuilt.param) == (error.code, error.kind, "prompt")
    if cls.__module__ == errors.__name__:
        assert type(rebuilt) is cls
    unknown = error_from("a_later_code", error.kind, "text")
    assert (unknown.code, unknown.kind) == ("a_later_code", error.kind)


def test_only_faults_of_ours_are_5xx() -> None:
    ours = {ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT, ErrorKind.INTERNAL}
    assert {kind for kind, status in HTTP_STATUS.items() if status >= 500} == ours
