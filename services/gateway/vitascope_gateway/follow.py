"""Who may follow a video: whoever has an API key of its tenant, or a token of that one video.

A browser's EventSource, WebSocket and <img> cannot send Authorization, so `events_url`, `websocket_url` and
`preview_url` carry a token. It opens these three and nothing else, for an hour, also when the API key that it was made
for is revoked meanwhile. It is a secret: no log, span or metric has a query string, and what a follower is told never
holds a newer token than its own.
"""

import time
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable
from dataclasses import dataclass

from pydantic import SecretStr

from vitascope_common import tokens
from vitascope_common.errors import LinkExpiredError, PermissionDeniedError, UnavailableError
from vitascope_common.events import TERMINAL_EVENTS
from vitascope_common.jobs import TERMINAL_JOB
from vitascope_gateway.hub import FeedHub
from vitascope_gateway.objects import Urls
from vitascope_gateway.service import Gateway, JobRecord, Store
from vitascope_gateway.silences import Silences
from vitascope_gateway.stream import BEGINNING, END_ID, Histories, JobStream, Positions

TOKEN_TTL_S = 3600
MAX_TOKEN_CHARS = 512
MAX_LAST_EVENT_ID_CHARS = 100

_PURPOSE = "vitascope-follow-1"
_ADVICE = "GET /v1/videos/{id} with your API key names a new one."


@dataclass(frozen=True)
class FollowTokens:
    """Makes and reads the tokens: `EXPIRES.TENANT.SIGNATURE`, where the signature covers the job too."""

    signing_key: SecretStr
    clock_s: Callable[[], float] = time.time

    def new(self, tenant_id: str, job_id: str) -> str:
        """Return a token for one job, valid for an hour."""
        expires = str(int(self.clock_s()) + TOKEN_TTL_S)
        signature = tokens.sign(_PURPOSE, (job_id, tenant_id, expires), self.signing_key)
        return f"{expires}.{urlsafe_b64encode(tenant_id.encode()).rstrip(b'=').decode()}.{signature}"

    def tenant_of(self, token: str, job_id: str) -> str:
        """Return the tenant whose job this token opens.

        Raises:
            LinkExpiredError: genuine, but too late; PermissionDeniedError: not of this job, or not ours.
        """
        refused = PermissionDeniedError(f"This token does not open this video. {_ADVICE}", param="token")
        parts = token.split(".")
        if len(token) > MAX_TOKEN_CHARS or len(parts) != 3 or not token.isascii():
            raise refused
        expires, tenant, signature = parts
        try:
            tenant_id = urlsafe_b64decode(tenant + "=" * (-len(tenant) % 4)).decode()
        except ValueError:
            raise refused from None
        if not tokens.is_genuine(_PURPOSE, (job_id, tenant_id, expires), signature, self.signing_key):
            raise refused
        if self.clock_s() >= int(expires):
            raise LinkExpiredError(f"This token has expired. {_ADVICE}", param="token")
        return tenant_id


@dataclass(frozen=True)
class Access:
    """What somebody may follow, and the URLs that it may be told."""

    tenant_id: str
    urls: Urls


class Following:
    """Opens the streams of jobs."""

    def __init__(
        self, gateway: Gateway, store: Store, hub: FeedHub, histories: Histories, positions: Positions
    ) -> None:
        self._gateway = gateway
        self._store = store
        self._hub = hub
        self._histories = histories
        self._positions = positions
        self._silences = Silences(store)

    async def open(self, access: Access, job_id: str, last_event_id: str) -> JobStream | None:
        """Return the stream after one event, "" for all of it; None when that event was the last one.

        Raises: NotFoundError, UnavailableError.
        """
        record = await self._gateway.video(access.tenant_id, job_id)
        last_id = last_event_id.strip()[:MAX_LAST_EVENT_ID_CHARS]
        if last_id == END_ID and record.state in TERMINAL_JOB:
            return None
        if last_id not in BEGINNING and await self._was_the_last(job_id, last_id):
            return None

        async def reload() -> JobRecord | None:
            return await self._store.job(access.tenant_id, job_id)

        return JobStream(
            record,
            last_id,
            hub=self._hub,
            histories=self._histories,
            positions=self._positions,
            reload=reload,
            is_open=self._silences.is_open,
            urls=access.urls,
        )

    async def _was_the_last(self, job_id: str, last_id: str) -> bool:
        try:
            at = await self._histories.event(job_id, last_id)
        except UnavailableError:
            return False
        return at is not None and at.type in TERMINAL_EVENTS
