"""Transactions whose end may be heard of or not."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common.database import Database
from vitascope_common.errors import UnavailableError
from vitascope_gateway.admission import UnknownOutcomeError
from vitascope_gateway.idempotency import Repeatable


@asynccontextmanager
async def transaction(database: Database, sent: Repeatable | None, hint: str) -> AsyncIterator[AsyncConnection]:
    """Yield a transaction for what must not be done twice; `hint` says what to look at before it is asked for again.

    Raises:
        UnavailableError: nothing was written; UnknownOutcomeError: it may have been.
    """
    is_committing = False
    try:
        async with database.transaction() as connection:
            yield connection
            is_committing = True
    except UnavailableError as error:
        if is_committing:
            raise UnknownOutcomeError(sent, hint) from error
        raise
