"""Byte ranges and conditional requests (RFC 9110, sections 13 and 14), as pure functions of headers."""

import re
from dataclasses import dataclass

MAX_HEADER_CHARS = 1000
"""A longer Range is ignored, which the RFC allows."""

_ONE_RANGE = re.compile(r"[ \t]*(?:([0-9]+)-([0-9]*)|-([0-9]+))[ \t]*")
_MAX_DIGITS = 19


@dataclass(frozen=True)
class ByteRange:
    """The bytes [start, end) of an object."""

    start: int
    end: int


class UnsatisfiableRangeError(Exception):
    """A well-formed range holds no byte of this object: 416."""


def parse_range(header: str | None, num_bytes: int) -> ByteRange | None:
    """Return the one range that is asked for, or None when the whole is to be sent.

    Whole: no header, another unit, wrong syntax, or several ranges (which a server may ignore).

    Raises: UnsatisfiableRangeError.
    """
    if header is None or len(header) > MAX_HEADER_CHARS:
        return None
    unit, equals, ranges = header.partition("=")
    found = _ONE_RANGE.fullmatch(ranges)
    if unit.strip(" \t").lower() != "bytes" or not equals or found is None:
        return None
    first, last, suffix = found.groups()
    if suffix is not None:
        length = _number(suffix)
        if length == 0 or num_bytes == 0:
            raise UnsatisfiableRangeError
        return ByteRange(max(0, num_bytes - length), num_bytes)
    start = _number(first)
    end = _number(last) + 1 if last else num_bytes
    if last and end <= start:
        return None
    if start >= num_bytes:
        raise UnsatisfiableRangeError
    return ByteRange(start, min(end, num_bytes))


def _number(digits: str) -> int:
    """Read a number; one beyond any object's size stays that without costing time."""
    significant = digits.lstrip("0")
    return int(significant or "0") if len(significant) <= _MAX_DIGITS else int(10**_MAX_DIGITS)


def is_not_modified(if_none_match: str | None, etag: str) -> bool:
    """Tell whether the client has this object already (weak comparison)."""
    if if_none_match is None:
        return False
    tags = [tag.strip(" \t").removeprefix("W/") for tag in if_none_match.split(",")]
    return etag in tags or tags == ["*"]


def range_applies(if_range: str | None, etag: str) -> bool:
    """Tell whether a Range may be obeyed: without If-Range, or when it names this object (strong comparison)."""
    return if_range is None or if_range.strip(" \t") == etag
