"""What the webhook sender reads from the environment."""

from typing import ClassVar

from pydantic import Field

from vitascope_common.settings import UsesDatabase, UsesUrls


class WebhooksSettings(UsesDatabase, UsesUrls):
    """Settings of the webhook sender; the three periods are shortened by tests only."""

    service: ClassVar[str] = "webhooks"

    retention_s: int = Field(default=7 * 24 * 3600, ge=0)
    """How long a finished delivery is kept in the log, and can be replayed."""
    poll_ms: int = Field(default=500, ge=10)
    """How often it looks for what is due."""
    lease_ms: int = Field(default=60_000, ge=1000)
    """What another sender has begun and not ended for this long is begun again."""
    retry_ms: int = Field(default=10_000, ge=1)
    """The longest first wait after an attempt that failed; each one doubles it."""
