"""One PostgreSQL for all suites; each takes databases of its own from it."""

from collections.abc import Callable, Iterator

import pytest

from vitascope_common.testing import postgres_server


@pytest.fixture(scope="session")
def new_postgres_database() -> Iterator[Callable[[], str]]:
    with postgres_server() as new_database:
        yield new_database
