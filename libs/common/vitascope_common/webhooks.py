"""Webhooks: which events there are, what is sent of them, and how it is signed (Standard Webhooks, v1).

What is sent is text that is made once, when its event happens, and signed anew at each attempt: the receiver refuses
a timestamp that is more than five minutes old. The event's id is the `webhook-id` of all attempts and replays, so that
a receiver can tell what it has seen.
"""

import hmac
import json
import secrets
from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import urlsplit

from vitascope_common.jobs import TERMINAL_JOB, JobState

COMPLETED, FAILED = "video.completed", "video.failed"
EVENT_TYPES = (COMPLETED, FAILED)
SECRET_PREFIX = "whsec_"  # noqa: S105  # it introduces one
OLD_SECRET_TTL_MS = 24 * 3600 * 1000
"""How long a secret that was replaced goes on signing, when its owner asks for that."""
MAX_URL_CHARS = 2048
USER_AGENT = "Vitascope-Webhooks/1"


@dataclass(frozen=True)
class SigningSecret:
    """What signs for one receiver, and what did before it."""

    secret: str
    old_secret: str | None = None
    old_secret_expires_at_ms: int | None = None

    def live(self, now_ms: int) -> list[str]:
        """Return the secrets that sign now, newest first."""
        is_old_live = self.old_secret is not None and now_ms < (self.old_secret_expires_at_ms or 0)
        return [self.secret, *([self.old_secret] if is_old_live and self.old_secret is not None else [])]


def new_secret() -> str:
    """Return a new signing secret: `whsec_` and 256 random bits in standard base64, which every verifier reads."""
    return SECRET_PREFIX + b64encode(secrets.token_bytes(32)).decode()


def hint(secret: str) -> str:
    """Return what may be shown of a secret so that its owner knows which one it is."""
    return f"{SECRET_PREFIX}…{secret[-5:-1]}"


def new_event_id() -> str:
    """Return an id for an event that no job stands behind."""
    return f"evt_{secrets.token_hex(16)}"


def event_id_of(job_id: str) -> str:
    """Return the id of the one event that tells of a job's end."""
    return f"evt_{job_id.removeprefix('video_')}"


def delivery_id_of(event_id: str, receiver: str) -> str:
    """Return the id of the first delivery of an event to a receiver: there can be one only."""
    return f"whd_{sha256(f'{event_id} {receiver}'.encode()).hexdigest()[:32]}"


def event_type_of(state: JobState) -> str:
    """Return what a job's end is called. Raises ValueError: it has not ended."""
    if state not in TERMINAL_JOB:
        raise ValueError(f"{state} is no end")
    return COMPLETED if state == JobState.COMPLETED else FAILED


def payload(event_id: str, event_type: str, created_at_ms: int, data: Mapping[str, Any]) -> str:
    """Return what is sent of an event: ASCII, so that everybody reads the same bytes."""
    event = {
        "id": event_id,
        "object": "event",
        "created_at": created_at_ms // 1000,
        "type": event_type,
        "data": dict(data),
    }
    return json.dumps(event, separators=(",", ":"))


def headers(event_id: str, text: str, signing: Sequence[str], now_ms: int) -> dict[str, str]:
    """Return the headers of one attempt, with a signature by each of the secrets."""
    timestamp = str(now_ms // 1000)
    signed = f"{event_id}.{timestamp}.{text}".encode()
    return {
        "content-type": "application/json",
        "user-agent": USER_AGENT,
        "webhook-id": event_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(secret, signed) for secret in signing),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = b64decode(secret.removeprefix(SECRET_PREFIX))
    return f"v1,{b64encode(hmac.digest(key, signed, 'sha256')).decode()}"


def host_of(url: str) -> str:
    """Return host and port of a URL: what logs may say of it, and what one receiver is. "": it has none."""
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""


def without_query(url: str) -> str:
    """Return a URL as its owner is shown it: keys are in queries."""
    return url.partition("#")[0].partition("?")[0]
