"""schemathesis asks what /openapi.json describes: nothing may crash, and nothing answer what it does not say.

Triggers in the database do what workers would, so that there is something to fetch, to change and to follow.
"""

import contextlib
import inspect
import json
import re
import sqlite3
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import asdict
from hashlib import sha256
from typing import Any

import httpx
import hypothesis
import jsonschema_rs
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase
from schemathesis.checks import not_a_server_error
from schemathesis.generation.meta import TestPhase
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    ignored_auth,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

from vitascope_common.jobs import Artifact
from vitascope_common.objectstore import open_store
from vitascope_gateway.api import make_app
from vitascope_gateway.openapi_answers import EXAMPLE_ID
from vitascope_gateway.testing import surroundings

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
    ignored_auth,
]
ANYTHING: dict[str, Any] = dict.fromkeys(inspect.signature(make_app).parameters)
DOCUMENT = make_app(**ANYTHING).openapi()
SETTINGS = hypothesis.settings(
    derandomize=True,
    database=None,
    deadline=None,
    max_examples=25,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.explicit, Phase.generate],
)
CLIP = b"\0\0\0\x18ftypmp42 what a published video is made of"
FILE = Artifact("video", "video", "video/mp4", "videos/a/1/video.mp4", sha256(CLIP).hexdigest(), len(CLIP))
PUBLISH = f"UPDATE tasks SET outputs = '{json.dumps([asdict(FILE)])}' WHERE stage = 'finish'"
COMPLETE = "UPDATE jobs SET state = 'completed', finished_at_ms = 5000"
WITHHOLD = "UPDATE jobs SET state = 'failed', error_code = 'output_blocked', error_message = 'withheld'"
EVERY_FOURTH = "(SELECT count(*) % 4 FROM jobs) = 0"
WORKERS = f"""
CREATE TRIGGER finish AFTER INSERT ON tasks WHEN NEW.stage = 'finish' BEGIN
  {PUBLISH} AND task_id = NEW.task_id;
  {COMPLETE} WHERE job_id = NEW.job_id;
  {WITHHOLD} WHERE job_id = NEW.job_id AND {EVERY_FOURTH};
END;
"""

PREVIEW = "GET /v1/videos/{video_id}/preview"
"""The example's video is finished, and nobody makes one here: its only good answer is a 404."""

# Not the plugin's fixture for a running server: it reads what pytest 9.2 has no more.
schema = schemathesis.openapi.from_dict(deepcopy(DOCUMENT))


@pytest.fixture(scope="module")
def options(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """How to call a gateway that has one finished video, that of the document's examples."""
    with surroundings(tmp_path_factory.mktemp("schema")) as around, around.gateway() as gateway:
        open_store(around.options["object_store_url"]).put_bytes(FILE.key, CLIP, "video/mp4")
        headers = {"Authorization": f"Bearer {around.add_tenant('operator', scopes='admin')}"}
        body = {"prompt": "a blue ring orbiting on white", "seconds": "3"}
        made = httpx.post(f"{gateway.base_url}/v1/videos", json=body, headers=headers).json()["id"]
        with contextlib.closing(sqlite3.connect(around.database_path)) as connection:
            connection.executescript(f"{PUBLISH}; {COMPLETE}; {WORKERS}")
            for table in ("jobs", "tasks"):
                connection.execute(f"UPDATE {table} SET job_id = ? WHERE job_id = ?", (EXAMPLE_ID, made))
            connection.commit()
        yield {"base_url": gateway.base_url, "headers": headers, "allow_redirects": False, "timeout": 30}


@schema.parametrize()
@pytest.mark.parametrize("checks", [pytest.param(CHECKS, id="")])  # without it all have one id on pytest 9.2
@SETTINGS
def test_every_operation(case: Any, options: dict[str, Any], checks: list[Any]) -> None:
    if case.headers and case.headers.get("Idempotency-Key") == "0":
        del case.headers["Idempotency-Key"]  # what it sends with everything: an answer to that would hide all others
    answer = case.call_and_validate(checks=checks, **options)
    if case.meta.phase.name is TestPhase.EXAMPLES and case.operation.label != PREVIEW:
        assert answer.status_code < 400, f"the document's own example is refused: {answer.text}"


def test_what_one_answer_says_leads_to_the_next(options: dict[str, Any]) -> None:
    class Visitor(schema.as_state_machine()):  # type: ignore[misc]
        def before_call(self, case: Any) -> None:
            if case.headers and case.headers.get("Idempotency-Key"):
                del case.headers["Idempotency-Key"]

        def get_call_kwargs(self, case: Any) -> dict[str, Any]:
            return options

        def validate_response(self, response: Any, case: Any, **_: Any) -> None:
            case.validate_response(response, checks=CHECKS, transport_kwargs=options)

    Visitor.run(settings=hypothesis.settings(SETTINGS, phases=[Phase.generate], stateful_step_count=8, max_examples=50))


def operations() -> Iterator[tuple[str, dict[str, Any]]]:
    for path, methods in DOCUMENT["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation


def test_it_is_what_the_gateway_serves(options: dict[str, Any]) -> None:
    assert httpx.get(f"{options['base_url']}/openapi.json").json() == DOCUMENT


def test_every_operation_is_described() -> None:
    names = [operation["operationId"] for _, operation in operations()]
    assert len(names) == len(set(names))
    tags = {tag["name"] for tag in DOCUMENT["tags"]}
    for where, operation in operations():
        assert set(operation["tags"]) <= tags, where
        assert all(operation[name] for name in ("summary", "description")), where
        for status, response in operation["responses"].items():
            assert "x-request-id" in response["headers"], where
            body = response.get("content", {}).get("application/json", {})
            assert int(status) < 400 or body["examples"], f"{where}: an example of {status}"


def test_every_component_has_a_name_that_generators_take() -> None:
    for kind, named in DOCUMENT["components"].items():
        assert all(re.fullmatch(r"[A-Za-z0-9._-]+", name) for name in named), kind


def test_every_link_leads_to_an_operation() -> None:
    names = {operation["operationId"] for _, operation in operations()}
    assert {link["operationId"] for link in DOCUMENT["components"]["links"].values()} <= names


def examples() -> Iterator[tuple[str, dict[str, Any], Any]]:
    for name, one in DOCUMENT["components"]["schemas"].items():
        if "example" in one:
            yield name, one, one["example"]
    for where, operation in operations():
        bodies = [operation.get("requestBody", {}), *operation["responses"].values()]
        for content in (body.get("content", {}).get("application/json", {}) for body in bodies):
            for what, example in content.get("examples", {}).items():
                yield f"{where}: {what}", content["schema"], example["value"]
            if "example" in content:
                yield where, content["schema"], content["example"]


@pytest.mark.parametrize(("schema", "example"), [pytest.param(*rest, id=name) for name, *rest in examples()])
def test_every_example_is_what_its_schema_says(schema: dict[str, Any], example: Any) -> None:
    whole = {**schema, "components": DOCUMENT["components"]}
    jsonschema_rs.validator_for(whole).validate(example)
