"""Start one postproc worker: `python -m vitascope_postproc`."""

import os
import sys
import tempfile
import threading
from importlib import metadata
from pathlib import Path

import structlog

from vitascope_common import ids, redis_clients, telemetry
from vitascope_common.errors import ConfigurationError
from vitascope_common.executor import Executor, WorkerIdentity
from vitascope_common.objectstore import open_store
from vitascope_postproc import certificates
from vitascope_postproc.adapters.events import StageEvents
from vitascope_postproc.adapters.ffmpeg import FfmpegEncoder
from vitascope_postproc.adapters.media import MediaInspector
from vitascope_postproc.adapters.provenance import C2paSigner
from vitascope_postproc.consumer import Consumer, make_app
from vitascope_postproc.scratch import Scratch
from vitascope_postproc.service import Postproc
from vitascope_postproc.settings import PostprocSettings

log = structlog.stdlib.get_logger("vitascope.postproc")

GRACE_S = 5.0
"""How long a running task may go on after SIGTERM before it is given back."""
EXIT_S = 7.5
"""When the process ends in any case; a task still held is then left to its lease."""


def main() -> int:
    """Run until told to stop; return the exit status."""
    try:
        settings = PostprocSettings.load()
        return serve(settings)
    except ConfigurationError as error:
        sys.stderr.write(f"{error.message}\n")
        return 2


def serve(settings: PostprocSettings) -> int:
    """Build everything, work until SIGTERM, take everything down. Raises ConfigurationError."""
    observed = telemetry.start(settings.service, settings)
    observed.mark_ready(False)
    signer = C2paSigner(certificates.ensure(settings.certificates()), _version())
    signer.check()
    store = open_store(settings.object_store_url, settings.s3_access_key, settings.s3_secret_key)
    scratch = Scratch((settings.data_dir or Path(tempfile.gettempdir()) / "vitascope") / "scratch" / "postproc")
    scratch.sweep()
    redis = redis_clients.connect(settings.redis_url.get_secret_value())
    executor = Executor(
        settings.scheduler_address,
        WorkerIdentity(ids.new_worker_id(settings.service), settings.service, settings.pool, num_slots=0),
    )
    service = Postproc(executor, store, FfmpegEncoder(), MediaInspector(), signer, StageEvents(redis), scratch)
    ended = threading.Event()

    def drain() -> None:
        observed.mark_ready(False)
        log.info("postproc.draining")
        service.drain(GRACE_S)
        if not ended.wait(EXIT_S):
            log.warning("postproc.drain_overdue", hint="a task that is still held comes back when its lease ends")
            observed.shutdown()
            os._exit(0)

    executor.start()
    log.info("postproc.started", pool=settings.pool, metrics_port=observed.metrics_port)
    try:
        consumer = Consumer(make_app(settings.broker_url.get_secret_value(), settings.pool), settings.pool, service.run)
        return consumer.serve(on_ready=observed.mark_ready, on_drain=drain)
    finally:
        executor.close()
        redis.close()
        observed.shutdown()
        ended.set()
        log.info("postproc.stopped")


def _version() -> str:
    try:
        return metadata.version("vitascope")
    except metadata.PackageNotFoundError:
        return "unreleased"


if __name__ == "__main__":
    sys.exit(main())
