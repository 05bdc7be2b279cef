"""What /openapi.json says of answers: their headers, what they look like, and what can be asked next."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from vitascope_gateway.objects import ErrorEnvelope

EXAMPLE_ID = "video_0199c0ffee000123456789abcdef0123"

TAGS = (
    ("videos", "Make videos, follow them, fetch them."),
    ("models", "What there is to make them with."),
    ("files", "Files of requests, and what became of them."),
    ("batches", "Work off a file of requests within a day."),
    ("webhooks", "Be told when videos have ended, signed as the Standard Webhooks are."),
    ("admin", "For operators: the queues. Needs a key with the scope `admin`."),
    ("health", "For whoever runs the gateway. Needs no key."),
)

HEADERS: Mapping[str, Any] = {
    "x-request-id": {
        "description": "Names this request in our logs. One that you send is kept if it is 1 to 128 letters, digits or "
        "any of . _ : -",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._:-]{1,128}$"},
    },
    "Location": {"description": "Where it is.", "required": True, "schema": {"type": "string"}},
    "openai-poll-after-ms": {
        "description": "When to ask again, in milliseconds: a twentieth of what is left.",
        "required": True,
        "schema": {"type": "integer", "minimum": 500, "maximum": 5000},
    },
    "Retry-After": {"description": "When to repeat the request, in seconds.", "schema": {"type": "integer"}},
    "x-should-retry": {
        "description": "Whether a client that repeats requests by itself, and counts, should repeat this one.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "WWW-Authenticate": {"description": "How to say who you are.", "required": True, "schema": {"type": "string"}},
}

ERROR_HEADERS: Mapping[str, tuple[str, ...]] = {
    "401": ("WWW-Authenticate",),
    "409": ("x-should-retry",),
    "429": ("Retry-After", "x-should-retry"),
    "503": ("Retry-After", "x-should-retry"),
}
MORE_HEADERS: Mapping[tuple[str, str], tuple[str, ...]] = {("get_video", "200"): ("openai-poll-after-ms",)}
"""Of one operation's answer with one status."""


def _error(message: str, type_: str, code: str, param: str | None = None) -> dict[str, Any]:
    return {"error": {"message": message, "type": type_, "param": param, "code": code}}


_INVALID = "invalid_request_error"
ERRORS: Mapping[str, Mapping[str, Any]] = {
    "400": {
        "a field that is wrong": _error(
            'seconds must be one of "1", "2", "3", "4"; got \'7\'.', _INVALID, "invalid_request", "seconds"
        ),
        "a prompt that is refused": _error(
            "The request was blocked by the safety check.", _INVALID, "moderation_blocked", "prompt"
        ),
        "something that the model cannot do": _error(
            "The model vita-mini-6 cannot extend a video; it can do: text_to_video.", _INVALID, "unsupported", "model"
        ),
    },
    "401": {
        "no key": _error("The API key is missing or not valid.", "authentication_error", "invalid_api_key"),
    },
    "403": {
        "not yours to ask for": _error(
            "Your plan does not include the service class realtime.",
            "permission_error",
            "permission_denied",
            "service_class",
        ),
    },
    "404": {
        "not there": _error("There is no video with this id.", _INVALID, "not_found", "video_id"),
        "no file yet": _error("The video is still being made: denoising.", _INVALID, "video_not_ready"),
    },
    "408": {"too slow": _error("The body did not arrive within 30 s.", _INVALID, "body_too_slow")},
    "409": {
        "not yet": _error(
            "This video is still being made; cancel it first, or wait.", _INVALID, "not_finished", "video_id"
        ),
    },
    "413": {
        "too large": _error("The body is too large; at most 29360128 bytes are allowed.", _INVALID, "body_too_large"),
        "no room": _error(
            "There is no room for this file of 200000000 bytes: your files have 9900000000 of the 10000000000 bytes …",
            _INVALID,
            "quota_exceeded",
            "file",
        ),
    },
    "415": {
        "neither JSON nor a form": _error(
            "The content type must be application/json or multipart/form-data.",
            _INVALID,
            "unsupported_media_type",
            "content-type",
        ),
    },
    "422": {
        "a key twice": _error(
            "This Idempotency-Key was used with another request.", _INVALID, "idempotency_key_reuse", "idempotency-key"
        ),
    },
    "429": {
        "too many": _error(
            "Too many of your videos are being read at the moment, at most 3 at once; repeat your request when one is "
            "done.",
            "rate_limit_error",
            "quota_exceeded",
        ),
    },
    "451": {
        "withheld": _error("This video was withheld by the safety check.", "permission_error", "output_blocked"),
    },
    "503": {
        "away": _error("The service is unavailable at the moment; try again.", "server_error", "unavailable"),
    },
}

VIDEO: Mapping[str, Any] = {
    "id": EXAMPLE_ID,
    "object": "video",
    "status": "in_progress",
    "progress": 41,
    "created_at": 1767225600,
    "completed_at": None,
    "expires_at": None,
    "model": "vita-mini-6",
    "prompt": "a blue ring orbiting on white",
    "seconds": "3",
    "size": "128x128",
    "remixed_from_video_id": None,
    "error": None,
    "phase": "denoising",
    "queue_position": None,
    "eta_seconds": 4.2,
    "estimated_completion_at": 1767225611,
    "stage": "generate",
    "steps_done": 10,
    "steps_total": 24,
    "attempt": 1,
    "seed": 7,
    "fps": 8,
    "num_frames": 25,
    "metadata": {"project": "demo"},
    "service_class": "standard",
    "priority": 0,
    "deadline_at": None,
    "retry_of": None,
    "cost": {"currency": "USD", "estimated": 0.003, "charged": None, "refunded": None},
    "gpu_seconds": 3.1,
    "inference_time_s": None,
    "stage_durations": {"queue": 0.4},
    "peak_memory_mb": None,
    "preview_url": f"https://vitascope.example/v1/videos/{EXAMPLE_ID}/preview?token=vsf_…",
    "events_url": f"https://vitascope.example/v1/videos/{EXAMPLE_ID}/events?token=vsf_…",
    "websocket_url": f"wss://vitascope.example/v1/videos/{EXAMPLE_ID}/ws?token=vsf_…",
}
OBJECTS: Mapping[str, Any] = {
    "Video": VIDEO,
    "VideoList": {
        "object": "list",
        "data": [VIDEO],
        "first_id": EXAMPLE_ID,
        "last_id": EXAMPLE_ID,
        "has_more": False,
    },
    "VideoDeleted": {"id": EXAMPLE_ID, "object": "video.deleted", "deleted": True},
    "VideoEstimate": {
        "object": "video.estimate",
        "model": "vita-mini-6",
        "seconds": "3",
        "size": "128x128",
        "num_frames": 25,
        "fps": 8,
        "num_inference_steps": 24,
        "service_class": "standard",
        "currency": "USD",
        "price": 0.003,
        "queue_position": 2,
        "wait_seconds": 12.5,
        "run_seconds": 6.1,
        "eta_seconds": 18.6,
    },
}
"""An example of each schema."""

_ID = {"video_id": "$response.body#/id"}
_ENDPOINT_ID = {"webhook_endpoint_id": "$response.body#/id"}
_OF_A_VIDEO: Mapping[str, Any] = {
    "GetVideo": {"operationId": "get_video", "parameters": _ID},
    "FollowVideo": {"operationId": "follow_video", "parameters": _ID},
    "GetPreview": {"operationId": "get_preview", "parameters": _ID},
    "GetContent": {"operationId": "get_content", "parameters": _ID},
    "CancelVideo": {"operationId": "cancel_video", "parameters": _ID},
    "RetryVideo": {"operationId": "retry_video", "parameters": _ID},
    "DeleteVideo": {"operationId": "delete_video", "parameters": _ID},
    "RemixVideo": {
        "operationId": "remix_video",
        "parameters": _ID,
        "requestBody": {"prompt": "$response.body#/prompt"},
    },
    "EditVideo": {
        "operationId": "edit_video",
        "requestBody": {"prompt": "$response.body#/prompt", "video": {"id": "$response.body#/id"}},
    },
    "ExtendVideo": {
        "operationId": "extend_video",
        "requestBody": {"prompt": "$response.body#/prompt", "video": {"id": "$response.body#/id"}},
    },
}
LINKS: Mapping[str, Mapping[str, Any]] = {
    "Video": _OF_A_VIDEO,
    "VideoList": {
        "NextPage": {"operationId": "list_videos", "parameters": {"after": "$response.body#/last_id"}},
        "GetFirstVideo": {"operationId": "get_video", "parameters": {"video_id": "$response.body#/first_id"}},
    },
    "VideoDeleted": {"GetDeletedVideo": {"operationId": "get_video", "parameters": _ID}},
    "WebhookEndpointWithSecret": {
        "GetWebhookEndpoint": {"operationId": "get_endpoint", "parameters": _ENDPOINT_ID},
        "UpdateWebhookEndpoint": {"operationId": "update_endpoint", "parameters": _ENDPOINT_ID},
        "RotateSecret": {"operationId": "rotate_endpoint_secret", "parameters": _ENDPOINT_ID},
        "DeleteWebhookEndpoint": {"operationId": "delete_endpoint", "parameters": _ENDPOINT_ID},
    },
    "ModelList": {"GetModel": {"operationId": "get_model", "parameters": {"model_id": "$response.body#/data/0/id"}}},
}
"""What can be asked next, by the schema of an answer."""


def describe_answers(document: dict[str, Any]) -> None:
    """Add to a document what its routes do not say: headers, examples, links, tags."""
    document["tags"] = [{"name": name, "description": text} for name, text in TAGS]
    components = document["components"]
    components["headers"] = dict(HEADERS)
    components["links"] = {name: link for links in LINKS.values() for name, link in links.items()}
    envelope = ErrorEnvelope.model_json_schema(ref_template="#/components/schemas/{model}")
    components["schemas"] |= envelope.pop("$defs") | {ErrorEnvelope.__name__: envelope}
    for name, example in OBJECTS.items():
        components["schemas"][name]["example"] = example
    for operation in _operations(document):
        for parameter in operation.get("parameters", ()):
            if parameter["name"] == "video_id":
                parameter |= {"description": "Id of one of your videos.", "example": EXAMPLE_ID}
        for status, response in operation["responses"].items():
            _complete(status, response, MORE_HEADERS.get((operation["operationId"], status), ()))


def _operations(document: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for path in document["paths"].values():
        yield from path.values()


def _complete(status: str, response: dict[str, Any], more_headers: Sequence[str]) -> None:
    headers = ["x-request-id", *ERROR_HEADERS.get(status, ()), *more_headers]
    body = response.get("content", {}).get("application/json", {})
    schema = body.get("schema", {}).get("$ref", "").rpartition("/")[2]
    if schema == ErrorEnvelope.__name__:
        body["examples"] = {what: {"value": value} for what, value in ERRORS.get(status, {}).items()}
    if status in ("202", "302"):
        headers.append("Location")
    references = {name: {"$ref": f"#/components/headers/{name}"} for name in headers}
    response["headers"] = references | response.get("headers", {})
    if schema in LINKS:
        response["links"] = {name: {"$ref": f"#/components/links/{name}"} for name in LINKS[schema]}
