"""The schema: every row has a tenant, every table a writer, and the migrations give what tables.py says."""

import re
from pathlib import Path

import pytest
import sqlalchemy as sa
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory

from vitascope_common import database, tables
from vitascope_common.tables import METADATA

SOURCE = Path(tables.__file__).read_text(encoding="utf-8")


OF_THE_INSTALLATION = {"cost_ratios"}
"""What is known of models and machines, and of no tenant."""


@pytest.mark.parametrize(
    "table", [one for one in METADATA.tables.values() if one.name not in OF_THE_INSTALLATION], ids=str
)
def test_every_row_carries_its_tenant(table: sa.Table) -> None:
    assert "tenant_id" in table.columns
    assert not table.columns["tenant_id"].nullable


@pytest.mark.parametrize("table", METADATA.tables.values(), ids=str)
def test_every_table_names_its_writer(table: sa.Table) -> None:
    assert re.search(rf"# (Written|Inserted) by: [^\n]+\n(#[^\n]*\n)*\w+ = sa\.Table\(\n    \"{table.name}\"", SOURCE)


@pytest.mark.parametrize("table", METADATA.tables.values(), ids=str)
def test_times_are_whole_milliseconds(table: sa.Table) -> None:
    for column in table.columns:
        assert not isinstance(column.type, sa.DateTime), f"{column} is no number"
        if column.name.endswith("_ms"):
            assert isinstance(column.type, sa.BigInteger), f"{column} overflows"


def test_there_is_one_head() -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(database.__file__).parent / "migrations"))
    assert len(ScriptDirectory.from_config(config).get_heads()) == 1


def test_the_migrations_give_the_schema(tmp_path: Path) -> None:
    path = tmp_path / "v.db"
    database.migrate(f"sqlite+aiosqlite:///{path}")
    database.migrate(f"sqlite+aiosqlite:///{path}")
    engine = sa.create_engine(f"sqlite:///{path}")
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        differences = compare_metadata(context, METADATA)
    engine.dispose()
    assert differences == []
