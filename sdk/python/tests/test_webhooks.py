"""Deliveries: taken when they are signed now and with our secret, else not."""

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import openai
import pytest

from vitascope_client import WebhookVerificationError, verify_webhook

SECRET = "whsec_" + base64.b64encode(b"a secret of 24 bytes 123").decode()
BODY = json.dumps(
    {"id": "evt_1", "object": "event", "created_at": 7, "type": "video.completed", "data": {"id": "video_1"}}
)


def signed(body: str = BODY, *, secret: str = SECRET, at_s: float | None = None) -> dict[str, str]:
    timestamp = str(int(time.time() if at_s is None else at_s))
    key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"evt_1.{timestamp}.{body}".encode(), hashlib.sha256).digest()
    signature = "v1," + base64.b64encode(digest).decode()
    return {"Webhook-Id": "evt_1", "Webhook-Timestamp": timestamp, "Webhook-Signature": signature}


@pytest.mark.parametrize("body", [BODY, BODY.encode()])
def test_a_signed_delivery_is_an_event(body: Any) -> None:
    event = verify_webhook(body, signed(), SECRET)
    assert (event.id, event.type, event.created_at, event.data) == ("evt_1", "video.completed", 7, {"id": "video_1"})
    assert verify_webhook(body, signed(), SECRET.removeprefix("whsec_")) == event


def test_what_we_take_the_stock_client_takes_too() -> None:
    with openai.OpenAI(api_key="k", base_url="http://gateway.test") as stock:
        assert stock.webhooks.unwrap(BODY, signed(), secret=SECRET).type == "video.completed"
    assert verify_webhook(BODY, signed(), SECRET)


def test_one_of_several_signatures_is_enough() -> None:
    other = "whsec_" + base64.b64encode(b"the one before").decode()
    headers = signed()
    headers["Webhook-Signature"] = (
        f"v1a,x v1,%%% {signed(secret=other)['Webhook-Signature']} " + (headers["Webhook-Signature"])
    )
    assert verify_webhook(BODY, headers, SECRET).id == "evt_1"
    assert verify_webhook(BODY, headers, other).id == "evt_1"


@pytest.mark.parametrize("away_s", [-301, 301])
def test_an_old_delivery_and_one_from_the_future_are_refused(away_s: int) -> None:
    headers = signed(at_s=time.time() + away_s + (1 if away_s > 0 else 0))
    with pytest.raises(WebhookVerificationError, match=r"30[0-2] s"):
        verify_webhook(BODY, headers, SECRET)
    assert verify_webhook(BODY, headers, SECRET, tolerance_s=400)


@pytest.mark.parametrize(
    ("body", "changed", "secret"),
    [
        (BODY + " ", {}, SECRET),
        (BODY, {"Webhook-Id": "evt_2"}, SECRET),
        (BODY, {"Webhook-Signature": ""}, SECRET),
        (BODY, {"Webhook-Signature": "v1,"}, SECRET),
        (BODY, {"Webhook-Signature": signed()["Webhook-Signature"].replace("v1,", "v2,")}, SECRET),
        (BODY, {"Webhook-Timestamp": "soon"}, SECRET),
        (BODY, {}, "whsec_" + base64.b64encode(b"another").decode()),
        (BODY, {}, "whsec_"),
        (BODY, {}, "whsec_ä"),
    ],
)
def test_anything_else_is_refused(body: str, changed: dict[str, str], secret: str) -> None:
    with pytest.raises(WebhookVerificationError):
        verify_webhook(body, signed() | changed, secret)


def test_a_missing_header_is_named() -> None:
    headers = signed()
    del headers["Webhook-Timestamp"]
    with pytest.raises(WebhookVerificationError, match="webhook-timestamp"):
        verify_webhook(BODY, headers, SECRET)


@pytest.mark.parametrize("body", ["{}", "[]", "text", '{"type": "x", "created_at": "soon", "data": {}}'])
def test_a_signed_body_that_is_no_event_is_refused(body: str) -> None:
    with pytest.raises(WebhookVerificationError, match="no event"):
        verify_webhook(body, signed(body), SECRET)
