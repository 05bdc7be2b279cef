"""Run the prompt service: `python -m vitascope_prompt`."""

import asyncio
import contextlib
import signal
import sys

import structlog

from vitascope_common import serving, telemetry
from vitascope_common.errors import UnavailableError
from vitascope_common.objectstore import open_store
from vitascope_common.registry import Registry
from vitascope_prompt.adapters.conditioning import StoredConditioning
from vitascope_prompt.adapters.models import FolderCatalogue, TorchEncoder
from vitascope_prompt.adapters.policy_file import PolicyFile
from vitascope_prompt.api import make_server
from vitascope_prompt.service import PromptService
from vitascope_prompt.settings import PromptSettings

READINESS_S = 1.0
"""How often the policy file is looked at when nobody asks."""

_log = structlog.stdlib.get_logger("vitascope.prompt")


async def serve(settings: PromptSettings, started: telemetry.Telemetry) -> None:
    """Serve until SIGTERM or SIGINT, then let running calls end."""
    stop = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    policies = PolicyFile(settings.policy_path)
    registry = Registry(settings.models_dir)
    store = open_store(settings.object_store_url, settings.s3_access_key, settings.s3_secret_key)
    service = PromptService(policies, FolderCatalogue(registry), TorchEncoder(registry), StoredConditioning(store))
    server = make_server(f"{settings.host}:{settings.port}", service)
    await server.start()
    _log.info("service.started", port=server.port, metrics_port=started.metrics_port)
    while not stop.is_set():
        started.mark_ready(await _is_usable(policies))
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), READINESS_S)
    started.mark_ready(False)
    _log.info("service.draining")
    await server.drain()
    await asyncio.to_thread(service.close)


async def _is_usable(policies: PolicyFile) -> bool:
    try:
        await asyncio.to_thread(policies.current)
    except UnavailableError:
        return False
    return True


def main() -> int:
    """Serve; return the exit status."""
    return serving.run(PromptSettings, serve)


if __name__ == "__main__":
    sys.exit(main())
