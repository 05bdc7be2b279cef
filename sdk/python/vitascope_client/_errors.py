"""The errors of this library.

    VitascopeError
    ├── WebhookVerificationError          a webhook was not signed with this secret, or not now
    └── APIError
        ├── APIConnectionError            the server was not reached, or the connection broke
        │   └── APITimeoutError           it did not answer in time
        └── APIStatusError                it answered with an error: status, code, param, request_id, retry_after_s
            ├── InvalidRequestError       400, 402, 405, 408, 409, 413, 415, 422, 451
            │   └── ModerationBlockedError    code moderation_blocked (400) or output_blocked (451)
            ├── AuthenticationError       401
            ├── PermissionDeniedError     403
            ├── NotFoundError             404, 410 (also: video_not_ready, video_failed, video_expired)
            ├── RateLimitError            429
            └── ServerError               500 and above

A wrong argument or a missing key is a VitascopeError as well.
"""


class VitascopeError(Exception):
    """Anything that this library raises."""


class WebhookVerificationError(VitascopeError):
    """A webhook was not signed with this secret, or not now."""


class APIError(VitascopeError):
    """A call failed."""

    def __init__(self, message: str) -> None:
        self.message = message
        super().__init__(message)


class APIConnectionError(APIError):
    """The server was not reached, or the connection broke."""


class APITimeoutError(APIConnectionError):
    """The server did not answer in time."""


class APIStatusError(APIError):
    """The server answered with an error."""

    def __init__(
        self,
        message: str,
        *,
        status: int,
        code: str | None,
        param: str | None,
        request_id: str | None,
        retry_after_s: float | None = None,
        is_final: bool = False,
    ) -> None:
        self.status = status
        """HTTP status."""
        self.code = code
        """Stable name of what went wrong."""
        self.param = param
        """The field at fault."""
        self.request_id = request_id
        """Tell it to whoever runs the server."""
        self.retry_after_s = retry_after_s
        """When the server wants to be asked again; None: it did not say."""
        self.is_final = is_final
        """Whether it said that asking again is of no use."""
        super().__init__(message)

    def __str__(self) -> str:
        return f"{self.message} ({self.status} {self.code or ''}, request {self.request_id})"


class InvalidRequestError(APIStatusError):
    """The request cannot be carried out as written; `param` names the field."""


class ModerationBlockedError(InvalidRequestError):
    """The safety check refused the prompt, or what was made of it."""


class AuthenticationError(APIStatusError):
    """The API key is missing or not valid."""


class PermissionDeniedError(APIStatusError):
    """The key is valid, but this is not allowed."""


class NotFoundError(APIStatusError):
    """There is no such thing, or it has no file (yet): see `code`."""


class RateLimitError(APIStatusError):
    """A rate, quota or budget is used up."""


class ServerError(APIStatusError):
    """The server cannot serve right now."""


TRANSIENT = (APIConnectionError, RateLimitError, ServerError)
"""What may be over in a moment."""


def status_error(
    status: int, body: object, *, request_id: str | None, retry_after_s: float | None, is_final: bool
) -> APIStatusError:
    """Return the error for an answer; a body that is not the envelope still gives a useful one."""
    envelope = body.get("error") if isinstance(body, dict) else None
    details = envelope if isinstance(envelope, dict) else {}
    code = details.get("code")
    kinds: dict[int, type[APIStatusError]] = {
        401: AuthenticationError,
        403: PermissionDeniedError,
        404: NotFoundError,
        410: NotFoundError,
        429: RateLimitError,
    }
    kind = kinds.get(status, ServerError if status >= 500 else InvalidRequestError)
    if code in ("moderation_blocked", "output_blocked"):
        kind = ModerationBlockedError
    message = str(details.get("message") or f"The server answered with status {status}.")
    return kind(
        message,
        status=status,
        code=code,
        param=details.get("param"),
        request_id=request_id,
        retry_after_s=retry_after_s,
        is_final=is_final,
    )
