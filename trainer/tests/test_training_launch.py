"""Processes that train together: one that fails takes the others with it."""

from __future__ import annotations

import subprocess
import sys

from vitascope_trainer.launch import _first_failure


def test_when_one_fails_all_others_are_ended() -> None:
    programs = ["raise SystemExit(3)", "import time; time.sleep(600)", "import time; time.sleep(600)"]
    children = [subprocess.Popen([sys.executable, "-I", "-S", "-c", program]) for program in programs]
    try:
        assert _first_failure(children, lambda: False) == 3
        assert all(child.poll() is not None for child in children)
    finally:
        for child in children:
            child.kill()
            child.wait()
