"""A share of the simulation for every run of the tests; `make simulate` runs as many seeds as one likes."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from tests.simulation.planted import PLANTED

ROOT = Path(__file__).parents[2]
NUM_SEEDS = 20
NUM_SEEDS_TO_FIND = 40


def simulate(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "tests.simulation", *(str(one) for one in arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.timeout(900)
def test_every_invariant_holds_for_every_seed() -> None:
    done = simulate("--seeds", NUM_SEEDS)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{NUM_SEEDS} seeds hold" in done.stdout


@pytest.mark.timeout(300)
def test_a_seed_is_the_same_run_every_time() -> None:
    first, second = simulate("--seed", 4), simulate("--seed", 4)
    assert first.stdout.count("\n") > 100
    assert first.stdout == second.stdout
    assert simulate("--seed", 5).stdout != first.stdout


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_seed_is_the_same_run_after_others_and_alone() -> None:
    after_others = simulate("--seeds", NUM_SEEDS_TO_FIND, "--planted", "sent-is-done")
    found = re.search(r"^seed (\d+): ", after_others.stdout, re.MULTILINE)
    assert found, after_others.stdout
    assert int(found[1]) > 1
    alone = simulate("--seed", found[1], "--planted", "sent-is-done")
    assert alone.stdout.splitlines()[-60:] == after_others.stdout.splitlines()[-60:]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", sorted(PLANTED))
def test_planted_bugs_are_found(name: str) -> None:
    done = simulate("--seeds", NUM_SEEDS_TO_FIND, "--planted", name)
    assert done.returncode == 1, done.stdout + done.stderr
    assert re.search(r"^seed \d+: ", done.stdout, re.MULTILINE)
