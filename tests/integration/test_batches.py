"""Batches over both databases, through the unmodified `openai` client, and through a gateway that is killed."""

import asyncio
import contextlib
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from tests.conftest import wait_for
from vitascope_common import ids, rpc
from vitascope_common.database import Database
from vitascope_common.objectstore import open_store
from vitascope_common.registry import Registry
from vitascope_common.tables import batches as batches_table
from vitascope_common.tables import jobs
from vitascope_common.url_guard import UrlGuard, UrlPolicy
from vitascope_gateway.adapters.batches import SqlBatches
from vitascope_gateway.adapters.files import SqlFiles
from vitascope_gateway.adapters.models import RegistryCatalogue
from vitascope_gateway.adapters.services import PromptClient, SchedulerClient
from vitascope_gateway.adapters.sql import SqlStore
from vitascope_gateway.adapters.webhooks import SqlWebhooks
from vitascope_gateway.batch_work import BatchWork
from vitascope_gateway.batches import Batches
from vitascope_gateway.creation import Creation
from vitascope_gateway.files import Files
from vitascope_gateway.idempotency import Mark
from vitascope_gateway.service import Caller, Gateway, MediaLinks
from vitascope_gateway.testing import (
    MODELS_DIR,
    SIGNING_KEY,
    GatewayProcess,
    Neighbours,
    Surroundings,
    add_tenant,
    neighbours,
    surroundings,
)
from vitascope_gateway.webhooks import Webhooks

MODEL = "vita-mini-6"


class Pings:
    """Redis that nobody asks."""

    async def ping(self) -> None:
        return None


def line(custom_id: str, **body: Any) -> str:
    body = {"prompt": "a circle", "model": MODEL, **body}
    return json.dumps({"custom_id": custom_id, "method": "POST", "url": "/v1/videos", "body": body})


async def test_a_batch_over_both_databases(database: Database, tmp_path: Path) -> None:
    with neighbours() as both:
        channel = rpc.connect(both.address)
        store, scheduler, prompts = SqlStore(database), SchedulerClient(channel), PromptClient(channel)
        objects, catalogue = open_store((tmp_path / "objects").as_uri()), RegistryCatalogue(Registry(MODELS_DIR))
        gateway = Gateway(
            store=store,
            prompts=prompts,
            scheduler=scheduler,
            catalogue=catalogue,
            events=Pings(),
            links=MediaLinks("http://delivery.test", SecretStr(SIGNING_KEY), 3600),
        )
        guard = UrlGuard(UrlPolicy())
        creation = Creation(
            gateway,
            store=store,
            prompts=prompts,
            scheduler=scheduler,
            catalogue=catalogue,
            objects=objects,
            guard=guard,
            webhooks=Webhooks(SqlWebhooks(database), guard),
        )
        files, rows = Files(SqlFiles(database), objects, max_bytes=2_000), SqlBatches(database)
        batches = Batches(rows, files)
        work = BatchWork(rows, files=files, objects=objects, store=store, gateway=gateway, creation=creation)
        caller = Caller("many", ("standard", "batch"), "key")
        (tmp_path / "in").write_text("\n".join([*(line(str(number)) for number in range(5)), line("no", seconds="99")]))
        await add_tenant(database, "many")
        try:
            file = await files.upload("many", "in.jsonl", tmp_path / "in", 3600_000)
            fields = {"input_file_id": file.file_id, "endpoint": "/v1/videos", "completion_window": "24h"}
            sent = Mark("k", 0, ids.now_ms())
            made = [await batches.create(caller, fields, "http://here", sent) for _ in range(2)]
            assert made[0].batch.batch_id == made[1].batch.batch_id
            assert [one.is_replayed for one in made] == [False, True]
            claims = [await rows.claim(name, ids.now_ms() + 1, -1) for name in ("old", "new")]
            await asyncio.gather(*(work._round(one) for one in claims if one is not None), return_exceptions=True)
            async with database.transaction() as connection:
                assert len((await connection.execute(sa.select(jobs.c.job_id))).all()) == 5
                done = sa.update(jobs).values(state="completed", finished_at_ms=ids.now_ms())
                await connection.execute(done)
                await connection.execute(sa.update(batches_table).values(next_at_ms=0))
            assert await work.step()
            ended = await batches.batch("many", made[0].batch.batch_id)
            assert (ended.state, ended.num_completed, ended.num_failed) == ("completed", 5, 1)
            page, has_more = await files.page("many", None, None, 2, is_ascending=False)
            assert ([one.purpose for one in page], has_more) == (["batch_output"] * 2, True)
            after = page[-1].file_id
            assert [one.file_id for one in (await files.page("many", "batch", after, 2, False))[0]] == [file.file_id]
            assert [one.batch_id for one in (await batches.page("many", None, 5))[0]] == [ended.batch_id]
            output = await asyncio.to_thread(objects.get_bytes, f"files/many/{ended.output_file_id}")
            assert [json.loads(one)["custom_id"] for one in output.splitlines()] == list("01234")
            await files.delete("many", file.file_id)
            assert await files.sweep() == 1
            await add_tenant(database, "full")
            (tmp_path / "large").write_bytes(b"x" * 1_500)
            uploads = [files.upload("full", "large", tmp_path / "large", 3600_000) for _ in range(2)]
            kept = await asyncio.gather(*uploads, return_exceptions=True)  # two at once, and room for one
            assert sorted(type(one).__name__ for one in kept) == ["File", "QuotaExceededError"]
            assert await rows.sweep(ids.now_ms() + 1, 10) == 1
        finally:
            await creation.drain()
            await channel.close()


@dataclass
class Platform:
    """What gateways need; each is a process of its own."""

    around: Surroundings

    @property
    def neighbours(self) -> Neighbours:
        return self.around.neighbours

    @contextlib.contextmanager
    def gateway(self) -> Iterator[tuple[GatewayProcess, openai.OpenAI]]:
        client = openai.OpenAI(base_url=f"{self.around.base_url}/v1", api_key=self.around.key)
        with self.around.gateway() as process, client:
            yield process, client

    def sql(self, statement: str, *values: Any) -> list[Any]:
        return self.around.sql(statement, *values)

    def end_jobs(self) -> None:
        """Do what workers do."""
        self.sql("UPDATE jobs SET state = 'completed', finished_at_ms = ? WHERE finished_at_ms IS NULL", ids.now_ms())


@pytest.fixture
def platform(tmp_path: Path) -> Iterator[Platform]:
    with surroundings(tmp_path) as around:
        yield Platform(around)


def test_the_stock_client_uploads_waits_and_reads(platform: Platform) -> None:
    with platform.gateway() as (_, client):
        data = "\n".join([line("good"), line("refused", prompt="something forbidden"), line("field", seconds="99")])
        file = client.files.create(file=("in.jsonl", data.encode()), purpose="batch")
        assert (file.object, file.purpose, file.bytes) == ("file", "batch", len(data))
        assert client.files.retrieve(file.id) == file
        assert client.files.content(file.id).text == data
        batch = client.batches.create(
            input_file_id=file.id, endpoint="/v1/videos", completion_window="24h", metadata={"run": "7"}
        )
        assert (batch.object, batch.endpoint, batch.metadata) == ("batch", "/v1/videos", {"run": "7"})
        wait_for("a job", lambda: platform.sql("SELECT * FROM jobs"))
        platform.end_jobs()
        wait_for("the end", lambda: client.batches.retrieve(batch.id).status == "completed")
        batch = client.batches.retrieve(batch.id)
        counts = batch.request_counts
        assert counts is not None
        assert (counts.total, counts.completed, counts.failed) == (3, 1, 2)
        assert batch.output_file_id
        assert batch.error_file_id
        (good,) = (json.loads(one) for one in client.files.content(batch.output_file_id).text.splitlines())
        assert (good["custom_id"], good["response"]["body"]["status"]) == ("good", "completed")
        failed = [json.loads(one) for one in client.files.content(batch.error_file_id).text.splitlines()]
        codes = [one["response"]["body"]["error"]["code"] for one in failed]
        assert codes == ["moderation_blocked", "invalid_request"]
        assert [one.id for one in client.batches.list()] == [batch.id]
        assert {one.id for one in client.files.list(limit=1)} == {file.id, batch.output_file_id, batch.error_file_id}
        assert client.files.delete(file.id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(file.id)
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(batch.id)


def test_the_stock_client_cancels_and_hears_why_a_file_is_useless(platform: Platform) -> None:
    with platform.gateway() as (_, client):
        file = client.files.create(
            file=io.BytesIO(line("a").encode()),
            purpose="batch",
            expires_after={"anchor": "created_at", "seconds": 3600},
        )
        assert file.expires_at == file.created_at + 3600
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/videos", completion_window="24h")
        (job,) = wait_for("a job", lambda: platform.sql("SELECT job_id FROM jobs"))
        assert client.batches.cancel(batch.id).status == "cancelling"
        wait_for("the cancel", lambda: ("acme", job[0]) in platform.neighbours.cancelled)
        platform.end_jobs()  # the video was faster
        wait_for("the end", lambda: client.batches.retrieve(batch.id).status == "cancelled")
        assert client.batches.retrieve(batch.id).output_file_id
        file = client.files.create(file=b"{", purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/videos", completion_window="24h")
        wait_for("the end", lambda: client.batches.retrieve(batch.id).status == "failed")
        errors = client.batches.retrieve(batch.id).errors
        assert errors is not None
        assert errors.data is not None
        assert [(one.code, one.line) for one in errors.data] == [("invalid_json_line", 1)]
        with pytest.raises(openai.BadRequestError) as wrong:
            client.files.create(file=b"{}", purpose="fine-tune")
        assert wrong.value.param == "purpose"


def test_the_batch_of_a_gateway_that_is_killed_goes_on_in_another(platform: Platform) -> None:
    num_lines = 100
    with platform.gateway() as (process, client):
        data = "\n".join(line(str(number)) for number in range(num_lines))
        file = client.files.create(file=("in.jsonl", data.encode()), purpose="batch")
        batch = client.batches.create(input_file_id=file.id, endpoint="/v1/videos", completion_window="24h")
        wait_for("the first jobs", lambda: platform.sql("SELECT * FROM jobs LIMIT 1"))
        process.process.kill()
        process.process.wait()
    num_jobs = len(platform.sql("SELECT * FROM jobs"))
    assert num_jobs < num_lines, "it was not killed in time"
    platform.sql("UPDATE batches SET next_at_ms = 0")  # its lease has ended
    with platform.gateway() as (_, client):
        wait_for("every job", lambda: len(platform.sql("SELECT * FROM jobs")) >= num_lines)
        platform.end_jobs()
        wait_for("the end", lambda: client.batches.retrieve(batch.id).status == "completed")
        output_file_id = client.batches.retrieve(batch.id).output_file_id
        assert output_file_id
        output = [json.loads(one) for one in client.files.content(output_file_id).text.splitlines()]
    assert [one["custom_id"] for one in output] == [str(number) for number in range(num_lines)]
    made = {one["response"]["body"]["id"] for one in output}
    assert made == {job_id for (job_id,) in platform.sql("SELECT job_id FROM jobs")}
    assert len(made) == num_lines
