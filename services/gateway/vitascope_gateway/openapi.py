"""What /openapi.json says beyond what the routes know."""

from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vitascope_common.registry_cards import TemporalAttention
from vitascope_gateway.request import DEADLINE_S, MAX_LABEL_CHARS, MAX_LABELS, MAX_SEED, PRIORITY, SERVICE_CLASSES

_PICTURES = {
    "input_reference": "The picture that the video begins with: PNG, JPEG or WebP, at most 10 MiB and 40 megapixels. "
    "It is scaled to cover the size and its middle is taken. For models with the capability image_to_video.",
    "last_frame": "A picture of what the video ends with, besides input_reference. For models with the capability "
    "keyframes.",
}
_DATA_URL = {"type": "string", "description": "A data URL: data:image/png;base64,…"}
_IMAGE_URL = {"type": "object", "required": ["image_url"], "properties": {"image_url": _DATA_URL}}
_FILE = {"type": "string", "format": "binary"}

_FIELDS: dict[str, Any] = {
    "type": "object",
    "required": ["prompt"],
    "properties": {
        "prompt": {"type": "string", "minLength": 1, "description": "What the video shows."},
        "model": {"type": "string", "description": "Id from /v1/models; may be left out when there is one."},
        "seconds": {"type": "string", "description": "One of the model's lengths; default: the model's."},
        "size": {"type": "string", "description": "One of the model's sizes, WIDTHxHEIGHT; default: the model's."},
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
        "num_frames": {"type": "integer", "description": "Only the model's own value for that length."},
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
    },
}


def _body(*forms: dict[str, Any]) -> dict[str, Any]:
    """Return the schema of a body in which pictures have one of these forms."""
    pictures = {name: {"description": text, "anyOf": list(forms)} for name, text in _PICTURES.items()}
    return {"schema": _FIELDS | {"properties": _FIELDS["properties"] | pictures}}


CREATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {
            "application/json": _body(_DATA_URL, _IMAGE_URL),
            "multipart/form-data": _body(_FILE, _DATA_URL, _IMAGE_URL),
        },
    }
}


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
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way
