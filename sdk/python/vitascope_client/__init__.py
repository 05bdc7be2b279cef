"""Python client of Vitascope.

from vitascope_client import Vitascope

with Vitascope(base_url="http://127.0.0.1:8000", api_key="vs_…") as client:
    video = client.videos.create(prompt="a red circle moving right on a black background")
    for event in client.videos.stream(video.id):
        print(event.type, event.data)
    client.videos.download(video.id, "video.mp4")
"""

from vitascope_client._admin import Admin
from vitascope_client._client import Videos, Vitascope
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
)
from vitascope_client._objects import Event, Model, Video, VideoError, VideoPage

__all__ = [
    "APIConnectionError",
    "APIError",
    "APIStatusError",
    "APITimeoutError",
    "Admin",
    "AuthenticationError",
    "Event",
    "InvalidRequestError",
    "Model",
    "ModerationBlockedError",
    "NotFoundError",
    "PermissionDeniedError",
    "RateLimitError",
    "ServerError",
    "Video",
    "VideoError",
    "VideoPage",
    "Videos",
    "Vitascope",
    "VitascopeError",
]
