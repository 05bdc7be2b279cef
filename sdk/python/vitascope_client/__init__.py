"""Python client of Vitascope; `AsyncVitascope` is the same for asyncio.

from vitascope_client import Vitascope

with Vitascope(base_url="http://127.0.0.1:8000", api_key="vs_…") as client:
    video = client.videos.create(prompt="a red circle moving right on a black background")
    video = client.videos.wait(video.id, on_progress=print)
    client.videos.download(video.id, "video.mp4")
"""

from vitascope_client._async._admin import AsyncAdmin
from vitascope_client._async._client import AsyncVitascope
from vitascope_client._async._stream import AsyncEventStream
from vitascope_client._async._videos import AsyncVideos
from vitascope_client._errors import (
    APIConnectionError,
    APIError,
    APIStatusError,
    APITimeoutError,
    AuthenticationError,
    InvalidRequestError,
    ModerationBlockedError,
    NotFoundError,
    PermissionDeniedError,
    RateLimitError,
    ServerError,
    VitascopeError,
    WebhookVerificationError,
)
from vitascope_client._objects import Cost, Estimate, Event, Model, Progress, Video, VideoError
from vitascope_client._requests import ChangeFields, VideoFields
from vitascope_client._sync._admin import Admin
from vitascope_client._sync._client import Vitascope
from vitascope_client._sync._stream import EventStream
from vitascope_client._sync._videos import Videos
from vitascope_client._webhooks import WebhookEvent, verify_webhook

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Admin",
    "AsyncAdmin",
    "AsyncEventStream",
    "AsyncVideos",
    "AsyncVitascope",
    "AuthenticationError",
    "ChangeFields",
    "Cost",
    "Estimate",
    "Event",
    "EventStream",
    "InvalidRequestError",
    "Model",
    "ModerationBlockedError",
    "NotFoundError",
    "PermissionDeniedError",
    "Progress",
    "RateLimitError",
    "ServerError",
    "Video",
    "VideoError",
    "VideoFields",
    "Videos",
    "Vitascope",
    "VitascopeError",
    "WebhookEvent",
    "WebhookVerificationError",
    "verify_webhook",
]
