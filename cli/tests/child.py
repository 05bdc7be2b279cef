"""A child for the supervisor's tests: serves the two metrics on `/metrics`, and misbehaves as told.

child.py NAME PORT MODE     MODE: good, stubborn (ignores SIGTERM), silent (never ready), refuses (exits 2), dies,
                        robbed (another program takes the port of the first start, whose pid it writes to $ROBBER)
"""

import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

NAME, PORT, MODE = sys.argv[1], int(sys.argv[2]), sys.argv[3]


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = f'vitascope_ready{{service="{NAME}"}} 1.0\nvitascope_pid{{service="{NAME}"}} {float(os.getpid())}\n'
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        pass


def stop(*_: object) -> None:
    print(f"stopped {NAME} {time.monotonic()}", flush=True)
    sys.exit(0)


signal.signal(signal.SIGTERM, signal.SIG_IGN if MODE == "stubborn" else stop)
print(f"hello from {NAME}", flush=True)
if MODE == "refuses":
    print("VITASCOPE_THING is not set", file=sys.stderr, flush=True)
    sys.exit(2)
if MODE == "dies":
    sys.exit(7)
if MODE == "silent":
    signal.pause()
if MODE == "robbed" and not Path(os.environ["ROBBER"]).exists():
    robber = "import socket, sys; s = socket.create_server(('127.0.0.1', int(sys.argv[1]))); print(flush=1)"
    robber += "\nwhile True: s.accept()"
    with subprocess.Popen(
        (sys.executable, "-c", robber, str(PORT)), stdout=subprocess.PIPE, start_new_session=True
    ) as process:
        process.stdout.readline()  # type: ignore[union-attr]  # it listens
        Path(os.environ["ROBBER"]).write_text(f"{process.pid} {PORT}")
        os._exit(2)
HTTPServer(("127.0.0.1", PORT), Handler).serve_forever()
