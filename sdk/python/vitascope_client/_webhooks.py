"""Webhooks, as their receiver sees them. The scheme is Standard Webhooks (https://www.standardwebhooks.com)."""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from vitascope_client._errors import WebhookVerificationError


@dataclass(frozen=True)
class WebhookEvent:
    """Something that happened, as the server tells it by itself."""

    id: str  # one event may be delivered more than once, always with this id
    type: str  # video.completed or video.failed
    created_at: int  # Unix seconds
    data: Mapping[str, Any]  # {"id": the video's}


def verify_webhook(
    body: bytes | str, headers: Mapping[str, str], secret: str, *, tolerance_s: float = 300.0
) -> WebhookEvent:
    """Return what a delivery says, once it is sure who sent it.

    Args:
        body: As it came over the wire, not parsed and written again.
        headers: The request's; their case does not matter.
        secret: `whsec_…`, as the endpoint was given it.
        tolerance_s: How far the clocks may be apart, and how old a delivery may be.

    Raises:
        WebhookVerificationError: it was not signed with this secret, or not now.
    """
    sent = {name.lower(): value for name, value in headers.items()}
    try:
        event_id, timestamp, signatures = (sent[f"webhook-{name}"] for name in ("id", "timestamp", "signature"))
    except KeyError as error:
        raise WebhookVerificationError(f"The header {error} is missing.") from None
    raw = body.encode() if isinstance(body, str) else body
    _check_time(timestamp, tolerance_s)
    expected = hmac.digest(_key(secret), f"{event_id}.{timestamp}.".encode() + raw, hashlib.sha256)
    if not any(hmac.compare_digest(expected, one) for one in _signatures(signatures)):
        raise WebhookVerificationError("The signature is not that of this secret.")
    try:
        event = json.loads(raw)
        return WebhookEvent(event_id, str(event["type"]), int(event["created_at"]), event["data"])
    except (ValueError, KeyError, TypeError) as error:
        raise WebhookVerificationError("The body is signed, but it is no event.") from error


def _check_time(timestamp: str, tolerance_s: float) -> None:
    try:
        age_s = time.time() - int(timestamp)
    except ValueError:
        raise WebhookVerificationError("The header webhook-timestamp is not a time.") from None
    if abs(age_s) > tolerance_s:
        raise WebhookVerificationError(f"It was signed {abs(age_s):.0f} s {'ago' if age_s > 0 else 'from now'}.")


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:  # an empty key signs for everybody
        raise WebhookVerificationError("The secret is not one: whsec_ and base64.")
    return key


def _signatures(header: str) -> list[bytes]:
    """Return the signatures of the version that we know; a secret that is being replaced signs beside the new one."""
    found = []
    for one in header.split():
        version, _, text = one.partition(",")
        if version == "v1":
            try:
                found.append(base64.b64decode(text, validate=True))
            except (binascii.Error, ValueError):
                continue
    return found
