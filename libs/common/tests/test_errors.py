import importlib
import pkgutil
import re

import pytest

import vitascope_common
from vitascope_common import errors
from vitascope_common.errors import (
    HTTP_STATUS,
    ErrorKind,
    NotFoundError,
    PermissionDeniedError,
    StaleAttemptError,
    UnauthenticatedError,
    VitascopeError,
    error_from,
    http_status,
)


def tree(root: type[VitascopeError]) -> list[type[VitascopeError]]:
    return [root, *(found for child in root.__subclasses__() for found in tree(child))]


OURS = [one for one in tree(VitascopeError)[1:] if one.__module__ == errors.__name__]


def test_the_drawing_names_every_error_with_its_code():
    drawn = dict(re.findall(r"(\w+Error) +(\w+)", errors.__doc__ or ""))
    drawn.pop("VitascopeError")
    assert drawn == {one.__name__: one.code for one in OURS}


def test_codes_are_unique():
    codes = [one.code for one in OURS]
    assert len(set(codes)) == len(codes)


@pytest.mark.parametrize("cls", OURS)
def test_an_error_can_be_rebuilt_from_its_parts(cls):
    rebuilt = error_from(cls.code, cls.kind, "why", "size", {"n": 1})
    assert type(rebuilt) is cls
    assert (rebuilt.message, rebuilt.param, dict(rebuilt.detail), str(rebuilt)) == ("why", "size", {"n": 1}, "why")


@pytest.mark.parametrize("kind", ErrorKind)
def test_a_code_of_a_newer_version_keeps_its_kind_and_code(kind):
    rebuilt = error_from("from_the_future", kind, "why")
    assert (rebuilt.code, rebuilt.kind) == ("from_the_future", kind)
    assert type(rebuilt) is not VitascopeError
    assert type(rebuilt).code != "from_the_future"


def test_every_kind_has_a_status():
    assert set(HTTP_STATUS) == set(ErrorKind)


def test_denied_is_401_without_a_key_and_403_with_one():
    assert http_status(UnauthenticatedError()) == 401
    assert http_status(PermissionDeniedError()) == 403
    assert http_status(NotFoundError()) == 404
    assert http_status(StaleAttemptError()) == 409


def test_every_error_says_something_without_being_told():
    for cls in OURS:
        assert str(cls()).endswith(".")


def test_detail_cannot_be_changed_afterwards():
    error = NotFoundError(detail={"id": "x"})
    with pytest.raises(TypeError):
        error.detail["id"] = "y"  # type: ignore[index]


def test_no_module_raises_errors_of_another_tree():
    for module in pkgutil.iter_modules(vitascope_common.__path__):
        loaded = importlib.import_module(f"vitascope_common.{module.name}")
        for name, value in vars(loaded).items():
            is_own_error = isinstance(value, type) and issubclass(value, Exception)
            if is_own_error and value.__module__ == loaded.__name__:
                assert issubclass(value, VitascopeError), f"{module.name}.{name}"
