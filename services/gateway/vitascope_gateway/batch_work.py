"""The work of batches: a duty of every gateway. SQL says who holds which batch, so that a killed one's go on elsewhere.

Nothing depends on the lease but that work is not done twice for nothing: the lines of a file are written in the
transaction that begins a batch, a line gets its job in the transaction that admits it, and output and error file are
seen from the transaction on that ends the batch.
"""

import asyncio
import json
import secrets
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, closing
from dataclasses import replace
from pathlib import Path
from threading import Event
from typing import BinaryIO

import structlog

from vitascope_common import ids
from vitascope_common.errors import (
    ErrorKind,
    InternalError,
    InvalidRequestError,
    NotFoundError,
    ObjectNotFoundError,
    PermissionDeniedError,
    UnavailableError,
    VitascopeError,
)
from vitascope_common.objectstore import ObjectStore
from vitascope_gateway import batch_lines, metrics
from vitascope_gateway.admission import BatchLine, LineTakenError
from vitascope_gateway.batch_lines import CANCELLED, EXPIRED, LineError
from vitascope_gateway.batches import SERVICE_CLASS, Batch, BatchState, BatchStore, End, Line, LineState
from vitascope_gateway.creation import Creation
from vitascope_gateway.edge import error_body
from vitascope_gateway.files import OUTPUT, File, Files
from vitascope_gateway.service import Caller, Gateway, Store

MAX_UNFINISHED = 100
"""Jobs of one batch at once, so that its tenant's other videos find a place as well."""
MAX_IN_ROW = 3
"""Lines that find something away, one after the other, before the others wait as well."""
MAX_ERRORS = 20
"""That a batch shows of its file."""
NUM_AT_ONCE = 4
POLL_MS = 3_000
IDLE_S, AWAY_S = 1.0, 5.0
LEASE_MS, RENEW_S = 60_000, 15.0
ADMIT_S = 10.0
"""Of a round, after which other batches have a turn."""
GRACE_MS = 5 * 60 * 1000
"""After the deadline, for the jobs that end by it; then they are not waited for."""
KEPT_MS = 30 * 24 * 3600 * 1000
"""Batches, after their end."""
SWEEP_S, SWEEP_BATCHES = 60.0, 10
MEASURE_S = 15.0
PAGE = 200
COMPLETED = "completed"
"""What becomes of a line that goes well; anything else is the code of an error."""

_FILE_GONE = {"code": "file_not_found", "message": "The input file is gone."}
_AWAY = (ErrorKind.UNAVAILABLE, ErrorKind.TIMEOUT, ErrorKind.EXHAUSTED)
_log = structlog.stdlib.get_logger("vitascope.gateway")


class BatchWork:
    """Works off batches."""

    def __init__(
        self,
        batches: BatchStore,
        *,
        files: Files,
        objects: ObjectStore,
        store: Store,
        gateway: Gateway,
        creation: Creation,
    ) -> None:
        self._batches = batches
        self._files = files
        self._objects = objects
        self._store = store
        self._gateway = gateway
        self._creation = creation

    async def run(self) -> None:
        """Work for ever, on a few batches at once; only when there is room does anybody look for another.

        Whatever goes wrong costs a round.
        """
        room = asyncio.Semaphore(NUM_AT_ONCE)
        async with asyncio.TaskGroup() as group:
            group.create_task(_repeat("files.not_swept", SWEEP_S, self.sweep))
            group.create_task(_repeat("batches.not_counted", MEASURE_S, self.measure))
            while True:
                await room.acquire()
                round_of_one = group.create_task(self._work(await self._look()))
                round_of_one.add_done_callback(lambda _: room.release())

    async def step(self) -> bool:
        """Do one round of the batch that has been due for longest. False: none is due."""
        batch = await self._claim()
        if batch is not None:
            await self._work(batch)
        return batch is not None

    async def sweep(self) -> None:
        """Remove some of what has been kept for long enough."""
        await self._files.sweep()
        await self._batches.sweep(ids.now_ms() - KEPT_MS, SWEEP_BATCHES)

    async def measure(self) -> None:
        """Count for `/metrics` what is under way."""
        metrics.BATCHES_UNDER_WAY.set(await self._batches.num_under_way())

    async def _look(self) -> Batch:
        """Wait until a batch is due, and take it."""
        while True:
            try:
                batch = await self._claim()
            except UnavailableError:  # the database has said so
                pause_s = AWAY_S
            except Exception as error:
                _log.error("batch.not_looked_for", exc_info=error)
                pause_s = AWAY_S
            else:
                if batch is not None:
                    return batch
                pause_s = IDLE_S
            await asyncio.sleep(pause_s)

    async def _claim(self) -> Batch | None:
        return await self._batches.claim(secrets.token_hex(8), ids.now_ms(), LEASE_MS)

    async def _work(self, batch: Batch) -> None:
        """Do a round of a batch that is ours, and give it back."""
        try:
            with structlog.contextvars.bound_contextvars(batch=batch.batch_id, tenant=batch.tenant_id):
                async with self._held(batch):
                    await self._round(batch)
        except VitascopeError as error:
            _log.warning("batch.round_failed", code=error.code, error=error.message)
        except Exception as error:
            _log.error("batch.round_crashed", exc_info=error)
        finally:
            try:
                await self._batches.renew(batch, ids.now_ms() + POLL_MS)
            except Exception as error:  # the lease ends by itself
                _log.warning("batch.not_given_back", batch=batch.batch_id, error=str(error))

    @asynccontextmanager
    async def _held(self, batch: Batch) -> AsyncIterator[None]:
        """Keep the lease while a round lasts."""

        async def renew() -> None:
            while True:
                await asyncio.sleep(RENEW_S)
                try:
                    await self._batches.renew(batch, ids.now_ms() + LEASE_MS)
                except UnavailableError as error:
                    _log.warning("batch.not_renewed", error=error.message)

        renewing = asyncio.create_task(renew())
        try:
            yield
        finally:
            renewing.cancel()
            await asyncio.gather(renewing, return_exceptions=True)

    async def _round(self, batch: Batch) -> None:
        if batch.state is BatchState.VALIDATING:
            if ids.now_ms() >= batch.deadline_at_ms:  # whatever kept it from being read
                error = _error(EXPIRED["code"], "The input file could not be read within the completion window.")
                await self._reject(batch, [error])
                return
            if not await self._validate(batch):
                return
            batch = replace(batch, state=BatchState.IN_PROGRESS)
        is_late = ids.now_ms() >= batch.deadline_at_ms
        if batch.state is BatchState.CANCELLING:
            await self._batches.give_up(batch.batch_id, LineState.PENDING, CANCELLED)
        elif is_late:
            await self._batches.give_up(batch.batch_id, LineState.PENDING, EXPIRED)
        counts = await self._batches.settle(batch)
        if counts.num_admitted and ids.now_ms() >= batch.deadline_at_ms + GRACE_MS:
            await self._batches.give_up(batch.batch_id, LineState.ADMITTED, EXPIRED)
            counts = await self._batches.settle(batch)
        if batch.state is BatchState.CANCELLING and counts.num_admitted:
            await self._cancel_jobs(batch)
            counts = await self._batches.settle(batch)
        if counts.num_pending and await self._admit(batch, MAX_UNFINISHED - counts.num_admitted):
            counts = await self._batches.settle(batch)
        if not counts.num_open:
            await self._finish(batch)

    async def _validate(self, batch: Batch) -> bool:
        """Read the file of a batch and write its lines. False: it cannot be used, or the batch is not ours any more."""
        is_over = Event()
        try:
            file = await self._files.input_of(batch.tenant_id, batch.input_file_id)
            lines, errors = await asyncio.to_thread(self._read, _caller(batch), file, is_over)
        except (NotFoundError, ObjectNotFoundError):
            lines, errors = [], [_error(_FILE_GONE["code"], _FILE_GONE["message"], param="input_file_id")]
        finally:
            is_over.set()
        if not errors and not any(line.state is LineState.PENDING for line in lines):
            refusals = [_error(str(line.error["code"]), str(line.error["message"]), line.number) for line in lines]
            errors = [_error("no_valid_line", "The file holds no request that can be carried out."), *refusals]
        if errors:
            await self._reject(batch, errors[:MAX_ERRORS])
            return False
        _log.info("batch.begun", num_lines=len(lines))
        return await self._batches.begin(batch, lines, ids.now_ms())

    async def _reject(self, batch: Batch, errors: Sequence[Mapping[str, object]]) -> None:
        """End a batch of which nothing is made."""
        _log.info("batch.rejected", num_errors=len(errors), code=errors[0]["code"])
        if await self._batches.reject(batch, errors, ids.now_ms()):
            metrics.BATCHES.labels(BatchState.FAILED).inc()

    def _read(self, caller: Caller, file: File, is_over: Event) -> tuple[list[Line], list[dict[str, object]]]:
        """Return the lines of a file, and what is wrong with the file as such. Blocks, until nobody waits for it."""
        lines: list[Line] = []
        errors: list[dict[str, object]] = []
        numbers: dict[str, int] = {}
        with closing(self._objects.open_range(file.key)) as chunks:
            try:
                for text in batch_lines.split(chunks):
                    if is_over.is_set():
                        break
                    if len(lines) == batch_lines.MAX_LINES:
                        raise batch_lines.too_many(text.number)
                    try:
                        line, body = batch_lines.parse(text)
                    except LineError as error:
                        errors.append(error.shown())
                        if len(errors) == MAX_ERRORS:
                            break
                        continue
                    first = numbers.setdefault(line.custom_id, line.number)
                    if first != line.number:
                        message = f"custom_id is that of line {first} already."
                        errors.append(_error("duplicate_custom_id", message, line.number, "custom_id"))
                    lines.append(self._checked(caller, line, body))
            except LineError as error:
                errors.append(error.shown())
        if not lines and not errors:
            errors.append(_error("empty_file", "The file holds no request."))
        return lines, errors

    def _checked(self, caller: Caller, line: Line, body: dict[str, object]) -> Line:
        try:
            self._creation.check(caller, batch_lines.fields_of(body))
        except (InvalidRequestError, PermissionDeniedError) as error:
            return replace(batch_lines.refused(line, *error_body(error)), state=LineState.FAILED)
        except VitascopeError:  # whatever is away may be there when the line's turn comes
            return line
        return line

    async def _admit(self, batch: Batch, num_lines: int) -> int:
        """Make jobs of lines, as many as there is room for and time; return how many lines have changed."""
        if num_lines <= 0:
            return 0
        try:
            file = await self._files.input_of(batch.tenant_id, batch.input_file_id)
        except NotFoundError:
            await self._batches.give_up(batch.batch_id, LineState.PENDING, _FILE_GONE)
            return num_lines
        lines = await self._batches.lines(batch.batch_id, LineState.PENDING, num_lines)
        until = asyncio.get_running_loop().time() + ADMIT_S
        num_changed = num_away = 0
        for line in lines:
            if num_away == MAX_IN_ROW or asyncio.get_running_loop().time() > until:
                break
            try:
                await self._admit_line(batch, file, line)
            except VitascopeError as error:
                if error.kind in _AWAY:
                    num_away += 1
                    _log.info("batch.line_put_off", line=line.number, code=error.code)
                    await self._batches.put_off(batch.batch_id, line.number)
                    continue
                await self._batches.refuse(batch.batch_id, line.number, *error_body(error))
            except Exception as error:  # a fault of ours: the others are not to suffer for it
                _log.error("batch.line_crashed", line=line.number, exc_info=error)
                await self._batches.refuse(batch.batch_id, line.number, *error_body(InternalError()))
            num_changed, num_away = num_changed + 1, 0
        return num_changed

    async def _admit_line(self, batch: Batch, file: File, line: Line) -> None:
        """Make the job of a line, unless it has one. Raises: what is wrong with it."""
        start = line.start_byte
        with closing(
            await asyncio.to_thread(self._objects.open_range, file.key, start, start + line.num_bytes)
        ) as part:
            data = await asyncio.to_thread(b"".join, part)
        _, body = await asyncio.to_thread(batch_lines.parse, batch_lines.Text(line.number, start, data))
        fields = batch_lines.fields_of(body)
        place = BatchLine(batch.batch_id, line.number, batch.deadline_at_ms)
        try:
            await self._creation.create_for(place, _caller(batch), fields)
        except LineTakenError:
            _log.info("batch.line_taken", line=line.number)

    async def _cancel_jobs(self, batch: Batch) -> None:
        for line in await self._batches.lines(batch.batch_id, LineState.ADMITTED, MAX_UNFINISHED):
            try:
                await self._gateway.cancel(batch.tenant_id, line.job_id or "")
            except NotFoundError:
                continue  # deleted meanwhile

    async def _finish(self, batch: Batch) -> None:
        """Write output and error file, and end the batch with them. Whoever is first does; the sweep takes the rest."""
        if batch.state is BatchState.IN_PROGRESS:
            if not await self._batches.finalize(batch, ids.now_ms()):
                return
            batch = replace(batch, state=BatchState.FINALIZING)
        with tempfile.TemporaryDirectory() as folder:
            output, errors = Path(folder) / "output", Path(folder) / "errors"
            with output.open("xb") as done, errors.open("xb") as failed:
                end, outcomes = await self._write(batch, done, failed)
            name = f"{batch.batch_id}_{{}}.jsonl"
            ttl_ms, tenant_id = batch.output_ttl_ms, batch.tenant_id
            if end.num_completed:
                kept = await self._files.keep(tenant_id, name.format("output"), OUTPUT, output, ttl_ms)
                end = replace(end, output=kept)
            if end.num_failed:
                kept = await self._files.keep(tenant_id, name.format("error"), OUTPUT, errors, ttl_ms)
                end = replace(end, errors=kept)
        if await self._batches.end(batch, end, ids.now_ms()):
            _log.info("batch.ended", state=end.state, num_completed=end.num_completed, num_failed=end.num_failed)
            metrics.BATCHES.labels(end.state).inc()
            for outcome, num_lines in outcomes.items():
                metrics.BATCH_LINES.labels(outcome).inc(num_lines)

    async def _write(self, batch: Batch, done: BinaryIO, failed: BinaryIO) -> tuple[End, Counter[str]]:
        """Write what became of every line, in the order of the file; return the end, and how many ended how."""
        outcomes: Counter[str] = Counter()
        after = 0
        while lines := await self._batches.lines(batch.batch_id, None, PAGE, after):
            after = lines[-1].number
            job_ids = [line.job_id for line in lines if line.job_id is not None]
            records = await self._store.jobs(batch.tenant_id, job_ids)
            for line in lines:
                shown, is_done = batch_lines.answer(batch, line, records.get(line.job_id or ""))
                outcomes[COMPLETED if is_done else batch_lines.code_of(shown)] += 1
                (done if is_done else failed).write(json.dumps(shown).encode() + b"\n")
        state = BatchState.EXPIRED if EXPIRED["code"] in outcomes else BatchState.COMPLETED
        if batch.state is BatchState.CANCELLING:
            state = BatchState.CANCELLED
        num_completed = outcomes[COMPLETED]
        return End(state, None, None, num_completed, outcomes.total() - num_completed), outcomes


async def _repeat(failure: str, every_s: float, duty: Callable[[], Awaitable[None]]) -> None:
    while True:
        await asyncio.sleep(every_s)
        try:
            await duty()
        except UnavailableError as error:
            _log.warning(failure, error=error.message)
        except Exception as error:
            _log.error(failure, exc_info=error)


def _caller(batch: Batch) -> Caller:
    """Return as whom lines are admitted: the plan was looked at when the batch came, and its key may be gone."""
    return Caller(batch.tenant_id, (SERVICE_CLASS,), "")


def _error(code: str, message: str, line: int | None = None, param: str | None = None) -> dict[str, object]:
    return {"code": code, "message": message, "param": param, "line": line}
