"""The one tree of errors that Vitascope raises, and what each kind means over HTTP.

    VitascopeError                      code                    kind
    ├── InvalidRequestError             invalid_request         invalid
    │   ├── InvalidModelError           invalid_model
    │   ├── UnsupportedError            unsupported
    │   ├── ModerationBlockedError      moderation_blocked
    │   ├── InvalidMediaError           invalid_media
    │   ├── UrlRefusedError             url_refused
    │   └── UrlFailedError              url_failed
    ├── ConfigurationError              configuration           invalid
    ├── UnauthenticatedError            invalid_api_key         denied
    ├── PermissionDeniedError           permission_denied       denied
    │   ├── LinkExpiredError            link_expired
    │   └── OutputBlockedError          output_blocked
    ├── NotFoundError                   not_found               not_found
    │   ├── ObjectNotFoundError         object_not_found
    │   ├── VideoNotReadyError          video_not_ready
    │   ├── VideoFailedError            video_failed
    │   └── VideoExpiredError           video_expired
    ├── ConflictError                   conflict                conflict
    │   ├── StaleAttemptError           stale_attempt
    │   ├── VideoNotFinishedError       not_finished
    │   ├── ModelChangedError           model_changed
    │   └── ReferenceExpiredError       reference_expired
    ├── QuotaExceededError              quota_exceeded          exhausted
    ├── UnavailableError                unavailable             unavailable
    ├── DeadlineError                   deadline_exceeded       timeout
    ├── JobCancelledError               cancelled               cancelled
    └── InternalError                   internal                internal
        └── CorruptObjectError          corrupt_object
            └── CorruptMezzanineError   corrupt_mezzanine

A code is part of the public API and never changes its meaning; the kind decides the status at an edge. Domain code
raises these and knows neither HTTP nor gRPC. Foreign exceptions become one of these once, in the adapter.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Any, ClassVar


class ErrorKind(StrEnum):
    """What went wrong, as coarse as a caller needs it to decide what to do next."""

    INVALID = "invalid"
    DENIED = "denied"
    NOT_FOUND = "not_found"
    CONFLICT = "conflict"
    EXHAUSTED = "exhausted"
    UNAVAILABLE = "unavailable"
    TIMEOUT = "timeout"
    CANCELLED = "cancelled"
    INTERNAL = "internal"


class VitascopeError(Exception):
    """An error with a stable code; `message` is written for the person who sees it.

    `param` names the request field at fault. `detail` holds further public facts (never secrets, never prompts).
    """

    code: str = "internal"
    kind: ErrorKind = ErrorKind.INTERNAL
    default_message: ClassVar[str] = "Something went wrong on our side."

    def __init__(
        self, message: str | None = None, *, param: str | None = None, detail: Mapping[str, Any] | None = None
    ) -> None:
        self.message = message or self.default_message
        self.param = param
        self.detail: Mapping[str, Any] = MappingProxyType(dict(detail or {}))
        super().__init__(self.message)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(code={self.code!r}, message={self.message!r}, param={self.param!r})"


class InvalidRequestError(VitascopeError):
    """The request cannot be carried out as written; repeating it unchanged is pointless."""

    code = "invalid_request"
    kind = ErrorKind.INVALID
    default_message = "The request is invalid."


class InvalidModelError(InvalidRequestError):
    """The named model does not exist here or cannot do what was asked."""

    code = "invalid_model"
    default_message = "This model is not available."


class UnsupportedError(InvalidRequestError):
    """Nothing here, or not the model that is to do it, can do this."""

    code = "unsupported"
    default_message = "This is not supported here."


class ModerationBlockedError(InvalidRequestError):
    """The safety check refused the prompt or an input."""

    code = "moderation_blocked"
    default_message = "The request was blocked by the safety check."


class InvalidMediaError(InvalidRequestError):
    """A clip is of no kind that is read here, damaged, or over a limit."""

    code = "invalid_media"
    default_message = "This clip cannot be used."


class UrlRefusedError(InvalidRequestError):
    """A URL leads where nothing of ours may go: a scheme, a host or an address that is not allowed."""

    code = "url_refused"
    default_message = "This URL is not allowed."


class UrlFailedError(InvalidRequestError):
    """A URL that somebody gave us could not be used: nobody there, too slow, or too much."""

    code = "url_failed"
    default_message = "This URL cannot be read."


class ConfigurationError(VitascopeError):
    """The settings or the command line cannot be used; the process must not start."""

    code = "configuration"
    kind = ErrorKind.INVALID
    default_message = "The configuration is invalid."


class UnauthenticatedError(VitascopeError):
    """The caller is unknown: no credentials, or none that we accept."""

    code = "invalid_api_key"
    kind = ErrorKind.DENIED
    default_message = "The API key is missing or not valid."


class PermissionDeniedError(VitascopeError):
    """The caller is known, and may not do this."""

    code = "permission_denied"
    kind = ErrorKind.DENIED
    default_message = "This is not permitted."


class LinkExpiredError(PermissionDeniedError):
    """A signed link was genuine, but its time has passed."""

    code = "link_expired"
    default_message = "This link has expired; request a new one."


class OutputBlockedError(PermissionDeniedError):
    """The safety check refused the finished video: nobody gets it."""

    code = "output_blocked"
    default_message = "This video was withheld by the safety check."


class NotFoundError(VitascopeError):
    """It does not exist, or not for this caller."""

    code = "not_found"
    kind = ErrorKind.NOT_FOUND
    default_message = "Not found."


class ObjectNotFoundError(NotFoundError):
    """The object store holds nothing under this key."""

    code = "object_not_found"
    default_message = "The object does not exist."


class VideoNotReadyError(NotFoundError):
    """The job exists, but its video does not yet."""

    code = "video_not_ready"
    default_message = "The video is not ready yet."


class VideoFailedError(NotFoundError):
    """The job ended without a video: it failed or was cancelled."""

    code = "video_failed"
    default_message = "This video was not made."


class VideoExpiredError(NotFoundError):
    """The video was made, kept as long as promised, and deleted."""

    code = "video_expired"
    default_message = "The video has expired and was deleted."


class ConflictError(VitascopeError):
    """The request contradicts the present state."""

    code = "conflict"
    kind = ErrorKind.CONFLICT
    default_message = "The request conflicts with the current state."


class StaleAttemptError(ConflictError):
    """Another attempt holds the task now; whoever gets this stops and changes nothing."""

    code = "stale_attempt"
    default_message = "This attempt no longer holds the task."


class VideoNotFinishedError(ConflictError):
    """The job is still under way; this is for those that have ended."""

    code = "not_finished"
    default_message = "The video is not finished yet."


class ModelChangedError(ConflictError):
    """The model is not what it was when the job was accepted: the same request would make another video."""

    code = "model_changed"
    default_message = "The model has changed since then."


class ReferenceExpiredError(ConflictError):
    """A picture or clip that a job was made from is no longer kept."""

    code = "reference_expired"
    default_message = "What this video was to be made from is no longer kept: send the request as a new one, with it."


class QuotaExceededError(VitascopeError):
    """A rate, quota or budget is used up; `is_passing`: for a moment, so that clients may try again by themselves."""

    is_passing = True

    code = "quota_exceeded"
    kind = ErrorKind.EXHAUSTED
    default_message = "The quota is used up."


class UnavailableError(VitascopeError):
    """Something needed is away; the same request may be repeated safely."""

    code = "unavailable"
    kind = ErrorKind.UNAVAILABLE
    default_message = "The service is unavailable at the moment; try again."


class DeadlineError(VitascopeError):
    """It took longer than allowed; whether it had an effect is not known."""

    code = "deadline_exceeded"
    kind = ErrorKind.TIMEOUT
    default_message = "The operation took too long."


class JobCancelledError(VitascopeError):
    """The job was cancelled while this was under way."""

    code = "cancelled"
    kind = ErrorKind.CANCELLED
    default_message = "The job was cancelled."


class InternalError(VitascopeError):
    """A fault of ours that no caller can mend."""

    code = "internal"
    kind = ErrorKind.INTERNAL
    default_message = "Something went wrong on our side."


class CorruptObjectError(InternalError):
    """Bytes differ from the hash or size recorded for them."""

    code = "corrupt_object"
    default_message = "Stored data is damaged."


class CorruptMezzanineError(CorruptObjectError):
    """The intact file of a generated video cannot be decoded; encoding it again is pointless."""

    code = "corrupt_mezzanine"
    default_message = "The generated video is damaged."


HTTP_STATUS: Mapping[ErrorKind, int] = MappingProxyType(
    {
        ErrorKind.INVALID: 400,
        ErrorKind.DENIED: 401,
        ErrorKind.NOT_FOUND: 404,
        ErrorKind.CONFLICT: 409,
        ErrorKind.EXHAUSTED: 429,
        ErrorKind.UNAVAILABLE: 503,
        ErrorKind.TIMEOUT: 504,
        ErrorKind.CANCELLED: 409,
        ErrorKind.INTERNAL: 500,
    }
)
"""Kind to HTTP status; `http_status` adds the distinctions that HTTP makes and kinds do not."""


def http_status(error: VitascopeError) -> int:
    """Return the HTTP status for an error: its kind's, but 403 when the caller is known and may not (451: nobody)."""
    if error.code == OutputBlockedError.code:
        return 451
    if error.kind is ErrorKind.DENIED and error.code != UnauthenticatedError.code:
        return 403
    return HTTP_STATUS[error.kind]


def _tree(root: type[VitascopeError]) -> list[type[VitascopeError]]:
    return [root, *(found for child in root.__subclasses__() for found in _tree(child))]


def error_from(
    code: str,
    kind: ErrorKind,
    message: str,
    param: str | None = None,
    detail: Mapping[str, Any] | None = None,
) -> VitascopeError:
    """Rebuild an error from its parts, as the class of that code, or of that kind when the code is not known here."""
    candidates = [cls for cls in _tree(VitascopeError)[1:] if cls.kind is kind]
    exact = [cls for cls in candidates if cls.code == code]
    chosen = (exact or [cls for cls in candidates if cls.__base__ is VitascopeError and cls is not ConfigurationError])[
        0
    ]
    error = chosen(message, param=param, detail=detail)
    if not exact:
        error.code = code
        error.kind = kind
    return error
