"""What pages of other origins may do: whatever their key or token may. There is no cookie that they could borrow."""

from fastapi import FastAPI
from starlette.middleware.cors import CORSMiddleware

EXPOSED = ("x-request-id", "retry-after", "x-should-retry", "openai-poll-after-ms", "idempotent-replayed", "location")
MAX_AGE_S = 24 * 3600


def open_to_pages(app: FastAPI) -> None:
    """Answer browsers that ask whether a page may send a request, and let it read every answer, errors too."""
    app.add_middleware(
        CORSMiddleware,
        allow_origins=["*"],
        allow_methods=["GET", "HEAD", "POST", "DELETE"],
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=MAX_AGE_S,
    )
