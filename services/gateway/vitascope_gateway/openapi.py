"""What /openapi.json says beyond what the routes know."""

from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vitascope_common import webhooks
from vitascope_common.registry_cards import TemporalAttention
from vitascope_gateway.openapi_answers import EXAMPLE_ID, describe_answers
from vitascope_gateway.request import (
    DEADLINE_S,
    DEFAULT_STRENGTH,
    IGNORED_FIELDS,
    MAX_LABEL_CHARS,
    MAX_LABELS,
    MAX_SEED,
    PRIORITY,
    SERVICE_CLASSES,
)

_PICTURES = {
    "input_reference": "The picture that the video begins with: PNG, JPEG or WebP, at most 10 MiB and 40 megapixels. "
    "It is scaled to cover the size and its middle is taken. For models with the capability image_to_video.",
    "last_frame": "A picture of what the video ends with, besides input_reference. For models with the capability "
    "keyframes.",
}
_URL = {
    "type": "string",
    "description": "A data URL (data:image/png;base64,…), or an https URL in the public Internet: the picture is "
    "fetched once, within 10 s and 3 redirects, before the video is promised.",
}
_IMAGE_URL = {"type": "object", "required": ["image_url"], "properties": {"image_url": _URL}}
_FILE = {"type": "string", "format": "binary"}

_FIELDS: dict[str, Any] = {
    "type": "object",
    "required": ["prompt"],
    "additionalProperties": False,
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "description": "What the video shows."},
        "model": {"type": "string", "description": "Id from /v1/models; default: the server's."},
        "seconds": {"type": "string", "description": "One of the model's lengths; default: the model's."},
        "size": {"type": "string", "description": "One of the model's sizes, WIDTHxHEIGHT; default: the model's."},
        "width": {"type": "integer", "description": "With height, another way to say size."},
        "height": {"type": "integer", "description": "With width, another way to say size."},
        "seed": {"type": "integer", "minimum": 0, "maximum": MAX_SEED, "description": "Default: a random one."},
        "negative_prompt": {"type": "string", "description": "What the video shall not show."},
        "num_inference_steps": {"type": "integer", "description": "Within the model's limits."},
        "guidance_scale": {"type": "number", "description": "Within the model's limits; 1 means none."},
        "solver": {"type": "string", "description": "One of the model's solvers; default: the model's."},
        "temporal_attention": {
            "type": "string",
            "enum": list(get_args(TemporalAttention)),
            "description": "How frames see each other; one that the model's card allows; default: the model's.",
        },
        "fps": {"type": "integer", "description": "Only the model's own value."},
        "num_frames": {"type": "integer", "description": "Another way to say seconds: one of the model's."},
        "metadata": {
            "type": "object",
            "maxProperties": MAX_LABELS,
            "additionalProperties": {"type": "string", "maxLength": MAX_LABEL_CHARS},
            "description": "Labels of your own. In a form: JSON text, or metadata[key]=value.",
        },
        "deadline_s": {
            "type": "number",
            "minimum": DEADLINE_S[0],
            "maximum": DEADLINE_S[1],
            "description": "Seconds until it fails with the code `expired` unless it is finished; default: never.",
        },
        "priority": {
            "type": "integer",
            "minimum": PRIORITY[0],
            "maximum": PRIORITY[1],
            "default": 0,
            "description": "Order among your own waiting videos of one class: lower is sooner.",
        },
        "service_class": {
            "type": "string",
            "enum": list(SERVICE_CLASSES),
            "description": "One that your plan includes; default: the first of them.",
        },
        "webhook_url": {
            "type": "string",
            "maxLength": webhooks.MAX_URL_CHARS,
            "description": "An https URL that is told when the video has ended, signed with the secret of "
            "GET /v1/webhooks/default/secret.",
        },
        "webhook_events": {
            "type": "array",
            "minItems": 1,
            "items": {"type": "string", "enum": list(webhooks.EVENT_TYPES)},
            "description": "What webhook_url is told; default: all. In a form: words between commas.",
        },
        "extra_body": {
            "description": "More of these fields, as other servers of this format take them. In a form: JSON text.",
        },
        **{name: {"description": "Taken, and changes nothing here."} for name in sorted(IGNORED_FIELDS)},
    },
}


_STRENGTH = {
    "type": "number",
    "minimum": 0,
    "maximum": 1,
    "default": DEFAULT_STRENGTH,
    "description": "How much is drawn over: 0 keeps the clip, 1 ignores it.",
}
_VIDEO_ID = {"type": "object", "required": ["id"], "properties": {"id": {"type": "string"}}}
_VIDEO = (
    "One of your finished videos, by its id. In a form also a file: MP4, MOV, WebM or Matroska with H.264, HEVC, VP8, "
    "VP9, AV1 or FFV1, at most 28 MiB with the rest of the form, and 120 s; it is brought to the size and the rate "
    "of the new video."
)


def _body(properties: dict[str, Any], form: dict[str, Any], *required: str, example: dict[str, Any]) -> dict[str, Any]:
    """Describe a body: the common fields and these; `form` says what may be a file in a form."""

    def schema(more: dict[str, Any]) -> dict[str, Any]:
        return _FIELDS | {"required": ["prompt", *required], "properties": _FIELDS["properties"] | properties | more}

    return {
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {"schema": schema({}), "example": example},
                "multipart/form-data": {"schema": schema(form)},
            },
        }
    }


def _pictures(*forms: dict[str, Any]) -> dict[str, Any]:
    return {name: {"description": text, "anyOf": list(forms)} for name, text in _PICTURES.items()}


CREATE_BODY = _body(
    _pictures(_URL, _IMAGE_URL),
    _pictures(_FILE, _URL, _IMAGE_URL),
    example={"prompt": "a blue ring orbiting on white", "seconds": "3", "seed": 7},
)
REMIX_BODY = _body({"strength": _STRENGTH}, {}, example={"prompt": "a green ring orbiting on white"})
EDIT_BODY = _body(
    {"strength": _STRENGTH, "video": {"description": _VIDEO, **_VIDEO_ID}},
    {"video": {"description": _VIDEO, "anyOf": [_FILE, _VIDEO_ID]}},
    "video",
    example={"prompt": "a green ring orbiting on white", "video": {"id": EXAMPLE_ID}, "strength": 0.75},
)
EXTENSION_BODY = _body(
    {"video": {"description": _VIDEO, **_VIDEO_ID}},
    {"video": {"description": _VIDEO, "anyOf": [_FILE, _VIDEO_ID]}},
    "video",
    example={"prompt": "a blue ring orbiting on white", "video": {"id": EXAMPLE_ID}, "seconds": "3"},
)


def install_openapi(app: FastAPI) -> None:
    """Describe what we really answer: the framework's own 422 never leaves this service."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    if "HTTPValidationError" in str(operation["responses"].get("422")):
                        del operation["responses"]["422"]
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            describe_answers(schema)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way
