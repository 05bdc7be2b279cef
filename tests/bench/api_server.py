"""The gateway's own process with three more routes: what the least is that a create and a GET could do.

`/bench/hello` does nothing; `/bench/create` reads a JSON body, asks the prompt service and commits one row durably;
`/bench/read` reads the row of one job. They run in the same server, behind the same middleware, as what is measured.
"""

import sys
from typing import Any

import sqlalchemy as sa
from fastapi import FastAPI, Request
from starlette.responses import JSONResponse

from vitascope_common import ids
from vitascope_common.tables import ledger
from vitascope_gateway import __main__ as program


def _make_app(gateway: Any, creation: Any, store: Any, *rest: Any, **more: Any) -> FastAPI:
    app: FastAPI = _real(gateway, creation, store, *rest, **more)

    @app.get("/bench/hello")
    async def hello() -> JSONResponse:
        return JSONResponse({"hello": "world"})

    @app.post("/bench/create")
    async def create(request: Request) -> JSONResponse:
        fields = await request.json()
        await gateway._prompts.check("bench", fields["model"], fields["prompt"], "")
        row = {
            "task_id": ids.new_job_id(),
            "attempt": 1,
            "job_id": "bench",
            "tenant_id": "bench",
            "used_s": 0.0,
            "meters": {},
            "outcome": "done",
            "created_at_ms": ids.now_ms(),
        }
        async with store._database.transaction() as connection:
            await connection.execute(sa.insert(ledger).values(**row))
        return JSONResponse({"id": row["task_id"]}, 202)

    @app.get("/bench/read/{job_id}")
    async def read(job_id: str) -> JSONResponse:
        record = await store.job("acme", job_id)
        return JSONResponse({"id": record.job_id})

    return app


_real = program.make_app
program.make_app = _make_app  # type: ignore[assignment]

if __name__ == "__main__":
    sys.exit(program.main())
