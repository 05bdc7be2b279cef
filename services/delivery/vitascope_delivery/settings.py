"""What delivery reads from the environment."""

from typing import ClassVar

from pydantic import Field

from vitascope_common.settings import UsesDatabase, UsesMediaLinks, UsesObjectStore


class DeliverySettings(UsesDatabase, UsesObjectStore, UsesMediaLinks):
    """Settings of the media origin; it reads SQL and never writes it."""

    service: ClassVar[str] = "delivery"

    port: int = Field(default=8080, ge=0, le=65535)
    """0: any free port."""
