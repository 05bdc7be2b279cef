"""Our JavaScript SDK against the running stack: sdk/js/tests/stack.mjs, in Node."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.conftest import Stack

SDK = Path(__file__).parents[2] / "sdk" / "js"


@pytest.mark.timeout(300)
def test_the_javascript_sdk(stack: Stack) -> None:
    environ = os.environ | {"VITASCOPE_BASE_URL": stack.base_url, "VITASCOPE_API_KEY": stack.api_key}
    subprocess.run(["npm", "run", "--silent", "build"], cwd=SDK, check=True, timeout=120)  # needs `npm ci` before
    ran = subprocess.run(
        ["node", "--test", "--test-force-exit", "--test-reporter=spec", "tests/stack.mjs"],
        cwd=SDK,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "pass 6" in ran.stdout
