"""What the gateway reads from the environment."""

from collections.abc import Mapping

from pydantic import Field, field_validator

from vitascope_common.settings import (
    UsesDatabase,
    UsesMediaLinks,
    UsesModels,
    UsesObjectStore,
    UsesPrompt,
    UsesRedis,
    UsesScheduler,
    UsesUrls,
)


class GatewaySettings(
    UsesDatabase, UsesRedis, UsesObjectStore, UsesModels, UsesPrompt, UsesScheduler, UsesMediaLinks, UsesUrls
):
    """The gateway's settings; its own fields read `VITASCOPE_GATEWAY_…`."""

    service = "gateway"

    port: int = Field(default=8000, ge=0, le=65535)
    """0: any free port."""
    grpc_port: int = Field(default=50050, ge=0, le=65535)
    """Of the public VideoService. 0: any free port."""
    grpc_reflection: bool = False
    """Whether clients may ask the gRPC server what it can do. `up` switches it on."""
    default_model: str | None = None
    """Model of a request that names none. None: the only card there is; with several, a request must say."""
    model_aliases: Mapping[str, str] = {"sora-2": "default", "sora-2-pro": "default"}
    """Other names of models, as JSON: for clients that know none of ours. "default": the model of a request that names
    none. A model of that name comes first."""
    public_url: str | None = None
    """Base of the URLs in answers, behind a proxy that rewrites Host. None: the Host that the client used."""
    link_ttl_s: int = Field(default=3600, ge=1, le=7 * 24 * 3600)
    """How long a delivery URL opens."""
    max_files_bytes: int = Field(default=10_000_000_000, ge=1)
    """Of a tenant: what it uploads for batches, and what batches leave it, together."""

    @field_validator("public_url")
    @classmethod
    def _public_url_is_base_url(cls, value: str | None) -> str | None:
        if value is not None and not value.startswith(("http://", "https://")):
            raise ValueError("must begin with http:// or https://")
        return value and value.rstrip("/")
