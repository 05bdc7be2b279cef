"""A killed worker costs its lease and a claim, not a visibility timeout."""

from pathlib import Path

import pytest
from tests.chaos.recovery_time import measure, summary


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_kill_to_first_new_step(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = summary(measure(6, tmp_path))
    with capsys.disabled():
        print(f"\nkill to first new step: {found}")
    assert 0 < found["p95_s"] <= 20
