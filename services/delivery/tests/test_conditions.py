"""Ranges and conditions as pure functions."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitascope_delivery.conditions import (
    ByteRange,
    UnsatisfiableRangeError,
    is_not_modified,
    parse_range,
    range_applies,
)


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("bytes=0-0", (0, 1)),
        ("bytes=0-", (0, 100)),
        ("bytes=99-", (99, 100)),
        ("bytes=10-19", (10, 20)),
        ("bytes=90-1000", (90, 100)),
        ("bytes=-1", (99, 100)),
        ("bytes=-100", (0, 100)),
        ("bytes=-1000", (0, 100)),
        ("BYTES=1-2", (1, 3)),
        ("bytes= 1-2 ", (1, 3)),
        ("bytes=0-" + "9" * 400, (0, 100)),
        ("bytes=000000000000000000000000001-2", (1, 3)),
    ],
)
def test_one_range(header, expected):
    assert parse_range(header, 100) == ByteRange(*expected)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "bytes",
        "bytes=",
        "bytes=-",
        "bytes=a-b",
        "bytes=5-4",
        "bytes=0-1,3-4",
        "bytes=0-1, -1",
        "items=0-1",
        "bytes=1-2-3",
        "bytes 0-1",
        "bytes=+1-2",
        "bytes=١-٢",
        "bytes=0x1-2",
        "bytes=1.0-2",
        "bytes=0-" + "9" * 4000,
    ],
)
def test_what_is_no_single_range_means_the_whole(header):
    assert parse_range(header, 100) is None


@pytest.mark.parametrize("header", ["bytes=100-", "bytes=100-200", "bytes=-0", "bytes=" + "9" * 300 + "-"])
def test_a_range_behind_the_end_is_unsatisfiable(header):
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, 100)


@pytest.mark.parametrize("header", ["bytes=0-", "bytes=-1", "bytes=0-0"])
def test_nothing_lies_in_an_empty_object(header):
    with pytest.raises(UnsatisfiableRangeError):
        parse_range(header, 0)


@given(st.text(max_size=40) | st.from_regex(r"bytes=[0-9,\- ]*", fullmatch=True), st.integers(0, 2**62))
def test_whatever_is_asked_the_range_lies_inside(header, num_bytes):
    try:
        found = parse_range(header, num_bytes)
    except UnsatisfiableRangeError:
        return
    assert found is None or 0 <= found.start < found.end <= num_bytes


def test_conditions():
    assert is_not_modified('"a"', '"a"')
    assert is_not_modified('"b", W/"a"', '"a"')
    assert is_not_modified("*", '"a"')
    assert not is_not_modified(None, '"a"')
    assert not is_not_modified('"b"', '"a"')
    assert not is_not_modified("", '"a"')
    assert range_applies(None, '"a"')
    assert range_applies('"a"', '"a"')
    assert not range_applies('W/"a"', '"a"')
    assert not range_applies("Sat, 29 Oct 1994 19:43:31 GMT", '"a"')
