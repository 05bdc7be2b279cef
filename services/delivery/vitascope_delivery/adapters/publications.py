"""Jobs in SQL, read only."""

import sqlalchemy as sa

from vitascope_common.database import Database
from vitascope_common.jobs import JobState
from vitascope_common.tables import jobs
from vitascope_delivery.service import Publication

_COLUMNS = (
    jobs.c.job_id,
    jobs.c.state,
    jobs.c.deleted_at_ms,
    jobs.c.expires_at_ms,
    jobs.c.manifest_key,
    jobs.c.manifest_sha256,
    jobs.c.traceparent,
)


class SqlPublications:
    """Looks jobs up; every call is one short read."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def find(self, job_id: str) -> Publication | None:
        """Return a job, or None."""
        async with self._database.read() as connection:
            row = (await connection.execute(sa.select(*_COLUMNS).where(jobs.c.job_id == job_id))).one_or_none()
        if row is None:
            return None
        return Publication(
            row.job_id,
            JobState(row.state),
            row.deleted_at_ms is not None,
            row.expires_at_ms,
            row.manifest_key,
            row.manifest_sha256,
            row.traceparent,
        )

    async def check(self) -> None:
        """Make sure that SQL answers."""
        await self._database.check()
