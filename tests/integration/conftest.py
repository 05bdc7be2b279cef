"""One PostgreSQL for all suites; each takes databases of its own from it. What tests of the job manager share."""

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa

from vitascope_common import tables
from vitascope_common.database import Database, migrate
from vitascope_common.testing import postgres_server, sqlite_database
from vitascope_scheduler.job_manager import JobManager
from vitascope_scheduler.testing import Sql, add_tenant


@pytest.fixture(scope="session")
def new_postgres_database() -> Iterator[Callable[[], str]]:
    with postgres_server() as new_database:
        yield new_database


@pytest.fixture(scope="session")
def postgres_url(new_postgres_database: Callable[[], str]) -> str:
    url = new_postgres_database()
    migrate(url)
    return url


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        return str(request.getfixturevalue("postgres_url"))
    return sqlite_database(tmp_path / "vitascope.db")


@pytest.fixture
async def database(database_url: str) -> AsyncIterator[Database]:
    database = Database(database_url, pool_size=10)
    async with database.transaction() as connection:
        for table in reversed(tables.METADATA.sorted_tables):
            await connection.execute(sa.delete(table))
    await add_tenant(database)
    yield database
    await database.close()


@pytest.fixture
def manager(database: Database) -> JobManager:
    return JobManager(database)


@pytest.fixture
def look(database: Database) -> Sql:
    return Sql(database)
