"""Pages of what a tenant has, by creation: one way for every list of the API."""

from collections.abc import Mapping, Sequence
from typing import Any

import sqlalchemy as sa

from vitascope_common.database import Database
from vitascope_common.errors import InvalidRequestError


async def page_of(
    database: Database,
    query: sa.Select[Any],
    cursor: sa.Select[Any],
    row_id: sa.ColumnElement[str],
    after: str | None,
    limit: int,
    what: str,
    *,
    is_ascending: bool = False,
) -> tuple[Sequence[Mapping[str, Any]], bool]:
    """Return the rows of `query` that come after the one that `cursor` dates, and whether more follow.

    Raises: InvalidRequestError: `cursor` finds nothing; `what` names what `after` must be one of.
    """
    created_at_ms = query.selected_columns["created_at_ms"]
    async with database.read() as connection:
        if after is not None:
            last_at_ms = (await connection.execute(cursor)).scalar_one_or_none()
            if last_at_ms is None:
                raise InvalidRequestError(f"after must be the id of one of your {what}.", param="after")
            place, last = sa.tuple_(created_at_ms, row_id), sa.tuple_(sa.literal(last_at_ms), sa.literal(after))
            query = query.where(place > last if is_ascending else place < last)
        order = [created_at_ms, row_id] if is_ascending else [created_at_ms.desc(), row_id.desc()]
        rows = (await connection.execute(query.order_by(*order).limit(limit + 1))).mappings().all()
    return rows[:limit], len(rows) > limit
