"""A supervisor as a process of its own, for tests that kill it: prints its children's pids, runs until SIGTERM.

supervise.py LOG_DIR STOP_BY_S NAME:PORT:MODE…     all children in one stop stage
"""

import asyncio
import json
import os
import signal
import sys
from pathlib import Path

from vitascope_cli.stack import service_probe
from vitascope_cli.supervisor import ChildSpec, Supervisor


async def run() -> None:
    specs = [
        ChildSpec(
            name,
            (sys.executable, str(Path(__file__).with_name("child.py")), name, port, mode),
            dict(os.environ),
            service_probe(name, "127.0.0.1", int(port)),
        )
        for name, port, mode in (argument.split(":") for argument in sys.argv[3:])
    ]
    supervisor = Supervisor(specs, Path(sys.argv[1]), say=print, stop_by_s=(float(sys.argv[2]),))
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    await supervisor.start()
    print(json.dumps(supervisor.pids), flush=True)
    await stop.wait()
    await supervisor.stop()


asyncio.run(run())
