"""What a data folder keeps: private, made once, and consistent after every accident."""

import asyncio
import os
import subprocess
import sys
from pathlib import Path

import pytest
import sqlalchemy as sa

from vitascope_cli.data_dir import (
    FIRST_KEY_NAME,
    FIRST_TENANT_CLASSES,
    DataDir,
    default_data_dir,
    default_num_threads,
    ensure_api_key,
    migrate_database,
)
from vitascope_common.database import Database
from vitascope_common.errors import ConfigurationError
from vitascope_common.tables import api_keys, tenants
from vitascope_common.tokens import api_key_hash


@pytest.fixture
def data_dir(tmp_path: Path) -> DataDir:
    one = DataDir(tmp_path / "data")
    one.prepare()
    return one


@pytest.fixture
def migrated(data_dir: DataDir) -> DataDir:
    migrate_database(data_dir.database_url)
    return data_dir


def rows(data_dir: DataDir, table: sa.Table) -> list[dict[str, object]]:
    async def read() -> list[dict[str, object]]:
        database = Database(data_dir.database_url)
        try:
            async with database.read() as connection:
                return [dict(row) for row in (await connection.execute(sa.select(table))).mappings()]
        finally:
            await database.close()

    return asyncio.run(read())


def live_hashes(data_dir: DataDir) -> set[object]:
    return {row["key_sha256"] for row in rows(data_dir, api_keys) if row["revoked_at_ms"] is None}


def test_the_folder_is_its_owners_alone(tmp_path: Path) -> None:
    one = DataDir(tmp_path / "data")
    one.prepare()
    one.prepare()
    assert all(path.stat().st_mode & 0o777 == 0o700 for path in (one.path, *one.path.iterdir()))


def test_a_folder_that_was_there_keeps_its_mode_and_what_is_made_in_it_is_private(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data").chmod(0o755)
    one = DataDir(tmp_path / "data")
    one.prepare()
    one.secret("signing_key")
    assert one.path.stat().st_mode & 0o777 == 0o755
    assert all(path.stat().st_mode & 0o077 == 0 for path in one.path.iterdir())


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="cannot be used"):
        DataDir(tmp_path / "file" / "data").prepare()
    with pytest.raises(ConfigurationError, match="may not contain"):
        DataDir(tmp_path / "what?").prepare()


def test_the_default_follows_xdg(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / "vitascope"
    monkeypatch.setenv("XDG_DATA_HOME", "relative/is/ignored")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_data_dir() == tmp_path / ".local/share/vitascope"


def test_secrets_are_made_once_and_private(data_dir: DataDir) -> None:
    first = data_dir.secret("signing_key")
    assert len(first) == 64
    assert data_dir.secret("redis_password") != first
    assert DataDir(data_dir.path).secret("signing_key") == first
    assert (data_dir.path / "secrets.json").stat().st_mode & 0o777 == 0o600
    (data_dir.path / "secrets.json").write_text("{")
    with pytest.raises(ConfigurationError, match=r"secrets.json is damaged"):
        data_dir.secret("signing_key")


def test_the_thread_count_stays_what_it_was(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    assert 1 <= default_num_threads() <= 4
    assert data_dir.num_threads() == default_num_threads()
    assert data_dir.num_threads(3) == 3
    data_dir.keep_ports({"gateway": 20001})
    monkeypatch.setattr("vitascope_cli.data_dir.default_num_threads", lambda: 1)
    assert DataDir(data_dir.path).num_threads() == 3
    assert data_dir.ports_before() == {"gateway": 20001}


def test_ranks_share_the_threads_that_one_would_have(data_dir: DataDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("psutil.cpu_count", lambda logical: 16)
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(16), raising=False)
    assert [default_num_threads(num_ranks) for num_ranks in (1, 2, 3, 8)] == [4, 2, 1, 1]
    assert data_dir.num_threads(num_ranks=2) == 2
    assert data_dir.num_threads(num_ranks=1) == 2  # as recorded


def test_two_stacks_on_one_folder_are_refused(data_dir: DataDir) -> None:
    refused = pytest.raises(ConfigurationError, match="Another `vitascope up` is running")
    with data_dir.locked(), refused, DataDir(data_dir.path).locked(patience_s=0.1):
        pass
    with data_dir.locked(patience_s=0.0):
        pass


def test_the_lock_is_held_until_the_last_child_is_gone(data_dir: DataDir) -> None:
    with data_dir.locked() as lock:
        command = [sys.executable, "-c", "input()"]
        child = subprocess.Popen(command, stdin=subprocess.PIPE, pass_fds=(lock,))
    with pytest.raises(ConfigurationError), data_dir.locked(patience_s=0.1):
        pass
    child.communicate(b"\n")
    with data_dir.locked():
        pass


def test_the_state_file_is_private_and_a_broken_one_is_none(data_dir: DataDir) -> None:
    assert data_dir.read_state() is None
    data_dir.write_state({"base_url": "http://127.0.0.1:1", "api_key": "vs_x"})
    assert data_dir.state_file.stat().st_mode & 0o777 == 0o600
    assert data_dir.read_state() == {"base_url": "http://127.0.0.1:1", "api_key": "vs_x"}
    for broken in ("", "[]", "{}", "{"):
        data_dir.state_file.write_text(broken)
        assert data_dir.read_state() is None
    data_dir.remove_state()
    data_dir.remove_state()
    assert data_dir.read_state() is None


def test_the_api_key_is_created_once_and_only_its_hash_is_stored(migrated: DataDir) -> None:
    key = ensure_api_key(migrated, migrated.database_url)
    assert ensure_api_key(migrated, migrated.database_url) == key
    assert migrated.api_key_file.read_text() == key + "\n"
    assert migrated.api_key_file.stat().st_mode & 0o777 == 0o600
    assert live_hashes(migrated) == {api_key_hash(key)}
    assert len(rows(migrated, tenants)) == 1
    assert key.encode() not in b"".join(path.read_bytes() for path in migrated.path.glob("vitascope.db*"))


def test_a_lost_key_file_gives_a_new_key_and_ends_the_old_one(migrated: DataDir) -> None:
    old = ensure_api_key(migrated, migrated.database_url)
    migrated.api_key_file.unlink()
    new = ensure_api_key(migrated, migrated.database_url)
    assert new != old
    assert live_hashes(migrated) == {api_key_hash(new)}


def test_a_lost_database_learns_the_key_of_the_file(migrated: DataDir) -> None:
    key = ensure_api_key(migrated, migrated.database_url)
    for path in migrated.path.glob("vitascope.db*"):
        path.unlink()
    migrate_database(migrated.database_url)
    assert ensure_api_key(migrated, migrated.database_url) == key
    assert live_hashes(migrated) == {api_key_hash(key)}


def test_a_revoked_key_is_replaced_and_others_keys_are_left_alone(migrated: DataDir) -> None:
    key = ensure_api_key(migrated, migrated.database_url)

    async def change() -> None:
        database = Database(migrated.database_url)
        async with database.transaction() as connection:
            await connection.execute(api_keys.update().values(revoked_at_ms=1))
            await connection.execute(
                api_keys.insert().values(key_sha256="f" * 64, tenant_id="default", name="ann's", created_at_ms=1)
            )
        await database.close()

    asyncio.run(change())
    new = ensure_api_key(migrated, migrated.database_url)
    assert new != key
    assert live_hashes(migrated) == {api_key_hash(new), "f" * 64}


def test_a_key_file_that_others_may_read_is_closed_again(migrated: DataDir) -> None:
    key = ensure_api_key(migrated, migrated.database_url)
    migrated.api_key_file.chmod(0o644)
    assert ensure_api_key(migrated, migrated.database_url) == key
    assert migrated.api_key_file.stat().st_mode & 0o777 == 0o600


def test_a_database_of_a_newer_version_is_refused_in_words(migrated: DataDir) -> None:
    async def change() -> None:
        database = Database(migrated.database_url)
        async with database.transaction() as connection:
            await connection.execute(sa.text("UPDATE alembic_version SET version_num = '9999'"))
        await database.close()

    asyncio.run(change())
    with pytest.raises(ConfigurationError, match="If a newer Vitascope wrote it"):
        migrate_database(migrated.database_url)


def test_a_damaged_database_is_refused_in_words(data_dir: DataDir) -> None:
    (data_dir.path / "vitascope.db").write_bytes(os.urandom(8192))
    with pytest.raises(ConfigurationError, match="cannot be used"):
        migrate_database(data_dir.database_url)


def test_a_database_server_that_is_away_is_named_without_its_password() -> None:
    with pytest.raises(ConfigurationError, match=r"127\.0\.0\.1:1/db cannot be used") as error:
        migrate_database("postgresql+asyncpg://me:secret@127.0.0.1:1/db")
    assert "secret" not in error.value.message


def change(data_dir: DataDir, *statements: sa.Executable) -> None:
    async def run() -> None:
        database = Database(data_dir.database_url)
        async with database.transaction() as connection:
            for statement in statements:
                await connection.execute(statement)
        await database.close()

    asyncio.run(run())


def plan(data_dir: DataDir) -> tuple[object, dict[object, object]]:
    """What the tenant and each live key may do."""
    (tenant,) = rows(data_dir, tenants)
    live = [row for row in rows(data_dir, api_keys) if row["revoked_at_ms"] is None]
    return tenant["classes"], {row["key_sha256"]: row["scopes"] for row in live}


def test_the_first_key_may_do_everything_until_an_operator_says_otherwise(migrated: DataDir) -> None:
    key = ensure_api_key(migrated, migrated.database_url)
    assert plan(migrated) == ("standard,realtime,batch", {api_key_hash(key): "admin"})
    change(migrated, tenants.update().values(classes="standard,batch"), api_keys.update().values(scopes=""))
    assert ensure_api_key(migrated, migrated.database_url) == key
    assert plan(migrated) == ("standard,batch", {api_key_hash(key): ""})


@pytest.mark.parametrize("classes", ["standard,batch", "batch"])
def test_a_key_of_the_first_version_gets_what_that_did_not_know_and_only_once(migrated: DataDir, classes: str) -> None:
    key = ensure_api_key(migrated, migrated.database_url)
    older = tenants.update().values(classes=classes)
    change(migrated, older, api_keys.update().values(name=FIRST_KEY_NAME, scopes=""))
    assert ensure_api_key(migrated, migrated.database_url) == key
    upgraded = FIRST_TENANT_CLASSES if classes == "standard,batch" else classes
    assert plan(migrated) == (upgraded, {api_key_hash(key): "admin"})
    change(migrated, older, api_keys.update().values(scopes=""))
    assert ensure_api_key(migrated, migrated.database_url) == key
    assert plan(migrated) == (classes, {api_key_hash(key): ""})


def test_a_lost_key_file_of_the_first_version_ends_the_old_key(migrated: DataDir) -> None:
    ensure_api_key(migrated, migrated.database_url)
    change(migrated, api_keys.update().values(name=FIRST_KEY_NAME))
    migrated.api_key_file.unlink()
    new = ensure_api_key(migrated, migrated.database_url)
    assert live_hashes(migrated) == {api_key_hash(new)}


def test_stacks_that_share_a_database_leave_each_others_keys_alone(migrated: DataDir, tmp_path: Path) -> None:
    first = ensure_api_key(migrated, migrated.database_url)
    change(migrated, api_keys.update().values(name=FIRST_KEY_NAME))  # also one that is not told apart by its name
    other = DataDir(tmp_path / "other")
    other.prepare()
    second = ensure_api_key(other, migrated.database_url)
    assert ensure_api_key(migrated, migrated.database_url) == first
    assert live_hashes(migrated) == {api_key_hash(first), api_key_hash(second)}
    other.api_key_file.unlink()
    third = ensure_api_key(other, migrated.database_url)
    assert live_hashes(migrated) == {api_key_hash(first), api_key_hash(third)}
