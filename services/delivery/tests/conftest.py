"""Delivery as a process over a real database and a real object store, with one published video."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
from pydantic import SecretStr

from vitascope_common import ids, tokens
from vitascope_common.objectstore_folder import FolderStore
from vitascope_common.process import dying_with_parent
from vitascope_common.tables import jobs
from vitascope_common.testing import sqlite_database

SIGNING_KEY = "test-signing-key-" + "x" * 32
START_S = 30.0


@dataclass
class Published:
    """A job with its files."""

    job_id: str
    video: bytes = field(repr=False)
    thumbnail: bytes = field(repr=False)


class Stack:
    """One delivery process and what it reads."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = FolderStore(folder / "objects")
        self.database_url = sqlite_database(folder / "vitascope.db")
        self.engine = sa.create_engine(f"sqlite:///{folder}/vitascope.db", poolclass=sa.NullPool)
        self.log = folder / "delivery.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.base_url = ""
        self.metrics_url = ""

    def env(self, **more: str) -> dict[str, str]:
        env = {name: value for name, value in os.environ.items() if not name.startswith("VITASCOPE_")}
        return env | {
            "VITASCOPE_DATABASE_URL": self.database_url,
            "VITASCOPE_OBJECT_STORE_URL": f"file://{self.folder}/objects",
            "VITASCOPE_SIGNING_KEY": SIGNING_KEY,
            "VITASCOPE_DELIVERY_PORT": "0",
            "VITASCOPE_LOG_FORMAT": "json",
            **more,
        }

    def start(self) -> None:
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                dying_with_parent([sys.executable, "-m", "vitascope_delivery"]), env=self.env(), stdout=log, stderr=log
            )
        until_s = time.monotonic() + START_S
        while time.monotonic() < until_s and self.process.poll() is None:
            started = [line for line in self.log.read_text().splitlines() if '"delivery.started"' in line]
            if started:
                said = json.loads(started[0])
                self.base_url = f"http://127.0.0.1:{said['port']}"
                self.metrics_url = f"http://127.0.0.1:{said['metrics_port']}/metrics"
                return
            time.sleep(0.02)
        raise AssertionError(self.log.read_text())

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()

    def insert_job(self, job_id: str, **columns: Any) -> None:
        row = {
            "job_id": job_id,
            "tenant_id": "t1",
            "kind": "generate",
            "model": "tiny",
            "state": "completed",
            "prompt": "secret prompt",
            "params": {},
            "safety": {},
            "labels": {},
            "created_at_ms": ids.now_ms(),
            **columns,
        }
        with self.engine.begin() as connection:
            connection.execute(sa.insert(jobs).values(row))

    def update_job(self, job_id: str, **columns: Any) -> None:
        with self.engine.begin() as connection:
            connection.execute(sa.update(jobs).where(jobs.c.job_id == job_id).values(columns))

    def publish(self, video: bytes = b"", **columns: Any) -> Published:
        """Store files and manifest as postproc does, and the row as the job manager does."""
        job = Published(ids.new_job_id(), video or bytes(range(256)) * 40 + b"end", b"RIFFxxxxWEBP")
        files = {}
        for name, file, media_type, data in (
            ("video", "video.mp4", "video/mp4", job.video),
            ("thumbnail", "thumbnail.webp", "image/webp", job.thumbnail),
        ):
            key = f"videos/{job.job_id}/1/{file}"
            info = self.store.put_bytes(key, data, media_type)
            files[name] = {"key": key, "media_type": media_type, "sha256": info.sha256, "num_bytes": info.num_bytes}
        manifest = {"schema": "vitascope.manifest/1", "job_id": job.job_id, "files": files}
        self.publish_manifest(job.job_id, json.dumps(manifest).encode(), **columns)
        return job

    def publish_manifest(self, job_id: str, manifest: bytes, **columns: Any) -> None:
        key = f"videos/{job_id}/1/manifest.json"
        self.store.put_bytes(key, manifest, "application/json")
        named = {"manifest_key": key, "manifest_sha256": sha256(manifest).hexdigest()}
        self.insert_job(job_id, **(named | columns))

    def metrics(self) -> dict[str, float]:
        lines = httpx.get(self.metrics_url).text.splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


def link(job_id: str, variant: str = "video", expires_in_s: float = 600, **more: str) -> str:
    path = f"/videos/{job_id}/{variant}"
    return f"{path}?{tokens.sign_path(path, int(time.time() + expires_in_s), SecretStr(SIGNING_KEY), **more)}"


@pytest.fixture(scope="session")
def sign() -> Callable[..., str]:
    """Make a link as the gateway does."""
    return link


@pytest.fixture(scope="session")
def stack(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    stack = Stack(tmp_path_factory.mktemp("delivery"))
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture
def own_stack(tmp_path: Path) -> Iterator[Stack]:
    """A process that the test may break."""
    stack = Stack(tmp_path)
    stack.start()
    yield stack
    stack.stop()


@pytest.fixture(scope="session")
def client(stack: Stack) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=stack.base_url) as client:
        yield client


@pytest.fixture(scope="session")
def job(stack: Stack) -> Published:
    return stack.publish()
