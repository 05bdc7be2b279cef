"""Our JavaScript SDK against the running stack: sdk/js/tests/stack.mjs, in Node."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import Stack

SDK = Path(__file__).parents[2] / "sdk" / "js"


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    not (SDK / "dist").exists() and os.environ.get("VITASCOPE_TEST_ALL") != "1", reason="sdk/js is not built: make js"
)
def test_the_javascript_sdk(stack: Stack) -> None:
    path = os.pathsep.join((str(Path(sys.executable).parent), os.environ["PATH"]))  # where make js puts a Node
    environ = os.environ | {"VITASCOPE_BASE_URL": stack.base_url, "VITASCOPE_API_KEY": stack.api_key, "PATH": path}
    ran = subprocess.run(
        ["node", "--test", "--test-reporter=spec", "tests/stack.mjs"],
        cwd=SDK,
        env=environ,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "pass 6" in ran.stdout
