"""What a failed command prints, and its exit status: one table for every error that can reach a person."""

import httpx

import vitascope_client
from vitascope_common.errors import VitascopeError

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_AWAY = 3
EXIT_REFUSED = 4
EXIT_INTERRUPTED = 130
CONFLICT = 409

EXIT_HELP = """
Exit status: 0 done. 1 the job failed or was cancelled, a check failed, or the stack could not start. 2 the command line
is wrong. 3 the stack cannot be reached or cannot serve now: try again later. 4 the request was refused (a value, the
safety check, the key, an unknown id): repeating it unchanged is pointless. 130 interrupted by Ctrl-C.
"""

_ADVICE: tuple[tuple[type[Exception], int, str], ...] = (
    (vitascope_client.ModerationBlockedError, EXIT_REFUSED, ""),
    (
        vitascope_client.AuthenticationError,
        EXIT_REFUSED,
        "Check --api-key or VITASCOPE_API_KEY.",
    ),
    (vitascope_client.PermissionDeniedError, EXIT_REFUSED, "Ask for a key that may do this."),
    (vitascope_client.NotFoundError, EXIT_REFUSED, "`vitascope jobs` lists what there is."),
    (vitascope_client.InvalidRequestError, EXIT_REFUSED, "`vitascope models` lists what each model can do."),
    (vitascope_client.RateLimitError, EXIT_AWAY, "Try again later."),
    (vitascope_client.ServerError, EXIT_AWAY, "Try again shortly; `vitascope doctor` looks for the cause."),
    (
        vitascope_client.APIConnectionError,
        EXIT_AWAY,
        "Is it running? `vitascope doctor` looks for the cause.",
    ),
    (vitascope_client.VitascopeError, EXIT_USAGE, ""),
    (VitascopeError, EXIT_FAILED, ""),
    (httpx.HTTPError, EXIT_AWAY, "`vitascope doctor` looks for the cause."),
    (OSError, EXIT_FAILED, ""),
)

HANDLED = tuple(kind for kind, _, _ in _ADVICE)
"""What is told in one line; anything else is a bug and keeps its traceback."""


def explain(error: Exception) -> tuple[str, int]:
    """Return the line for an error (code, message, what to do) and the exit status."""
    _, status, advice = next(row for row in _ADVICE if isinstance(error, row[0]))
    if getattr(error, "status", None) == CONFLICT:
        advice = ""  # the request is well formed; the message says what stands against it
    message = getattr(error, "message", None) or str(error)
    param = getattr(error, "param", None)
    text = f"{param}: {message}" if param and param not in message else message
    if not text.endswith((".", "!", "?", "…")):
        text += "."
    return f"error [{_code(error)}]: {text} {advice}".rstrip(), status


def _code(error: Exception) -> str:
    """Return the error's stable code, or a name for what never reached a server."""
    if code := getattr(error, "code", None):
        return str(code)
    if isinstance(error, vitascope_client.APITimeoutError):
        return "timeout"
    if isinstance(error, vitascope_client.APIConnectionError | httpx.HTTPError):
        return "unreachable"
    return "file" if isinstance(error, OSError) else "usage"
