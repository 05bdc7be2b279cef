"""The SDKs have a name for everything that a request may say."""

import re
from pathlib import Path

from vitascope_client import ChangeFields, VideoFields
from vitascope_gateway.request import CHANGE_FIELDS, FIELDS

ROOT = Path(__file__).parents[2]


def test_the_fields_of_the_python_sdk_are_those_of_the_gateway() -> None:
    assert set(VideoFields.__annotations__) == set(FIELDS)
    assert set(ChangeFields.__annotations__) == {*FIELDS, *CHANGE_FIELDS}


def test_the_fields_of_the_javascript_sdk_are_those_of_the_gateway() -> None:
    source = (ROOT / "sdk/js/src/objects.ts").read_text(encoding="utf-8")
    bodies = dict(re.findall(r"^export interface (\w+Params)\b[^{]*\{\n(.*?)^\}", source, re.DOTALL | re.MULTILINE))
    named = {name: set(re.findall(r"^  (\w+)\??:", body, re.MULTILINE)) for name, body in bodies.items()}
    assert named["VideoParams"] | named["CreateParams"] == set(FIELDS)
    assert named["RemixParams"] == set(CHANGE_FIELDS)
