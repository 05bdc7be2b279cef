"""What pages of other origins may do: whatever their key or token may. There is no cookie that they could borrow."""

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from vitascope_common.errors import InvalidRequestError
from vitascope_gateway.edge import error_response
from vitascope_gateway.idempotency import REPLAYED_HEADER

EXPOSED = ("x-request-id", "retry-after", "x-should-retry", "openai-poll-after-ms", REPLAYED_HEADER, "location")
METHODS = ("GET", "HEAD", "POST", "DELETE")
MAX_AGE_S = 24 * 3600


class _Cors(CORSMiddleware):
    """Starlette's, whose refusals are the envelope as well."""

    def preflight_response(self, request_headers: Headers) -> Response:
        """Answer whether a page may send a request."""
        answer = super().preflight_response(request_headers)
        if answer.status_code < 400:
            return answer
        error = InvalidRequestError(f"Pages may send {', '.join(METHODS)}, and nothing into private networks.")
        headers = {name: answer.headers[name] for name in answer.headers if name.startswith("access-control-")}
        return error_response(error, headers)


def open_to_pages(app: FastAPI) -> None:
    """Answer browsers that ask whether a page may send a request, and let it read every answer, errors too."""
    app.add_middleware(
        _Cors,
        allow_origins=["*"],
        allow_methods=METHODS,
        allow_headers=["*"],
        expose_headers=EXPOSED,
        max_age=MAX_AGE_S,
    )
