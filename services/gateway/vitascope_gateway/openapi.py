"""What /openapi.json says beyond what the routes know."""

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from vitascope_gateway.request import DEADLINE_S, MAX_LABEL_CHARS, MAX_LABELS, MAX_SEED, PRIORITY, SERVICE_CLASSES

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

CREATE_BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": _FIELDS}, "multipart/form-data": {"schema": _FIELDS}},
    }
}


def install_openapi(app: FastAPI) -> None:
    """Describe what we really answer: the framework's own 422 never leaves this service."""

    def describe() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(title=app.title, version=app.version, description=app.description, routes=app.routes)
            for path in schema["paths"].values():
                for operation in path.values():
                    operation["responses"].pop("422", None)
            for name in ("HTTPValidationError", "ValidationError"):
                schema["components"]["schemas"].pop(name, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = describe  # type: ignore[method-assign]  # FastAPI's documented way
