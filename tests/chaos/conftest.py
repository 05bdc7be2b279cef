"""One stack with short leases for everything that is broken here, and the undisturbed twin to compare with."""

import random
from collections.abc import Iterator

import pytest
from tests.chaos.clips import make_clip
from tests.chaos.invariants import follow
from tests.chaos.workers import Worker, second_worker

from tests.conftest import SHORT_LEASES, Stack


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--chaos-seed", type=int, help="order and moments of the soak's faults; by default another each time"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Let what needs a second worker come last, when all the rest of this stack is done."""
    items.sort(key=lambda item: "second" in getattr(item, "fixturenames", ()))


@pytest.fixture(scope="session")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    one = Stack(tmp_path_factory.mktemp("chaos") / "data", settings=SHORT_LEASES)
    yield one
    one.close()


@pytest.fixture(scope="session")
def twin(chaos: Stack) -> str:
    """sha256 of the final latents of the undisturbed clip."""
    video_id = make_clip(chaos)
    assert follow(chaos, video_id)[-1].type == "completed"
    return str(chaos.output(video_id, "generate", "latents")["sha256"])


@pytest.fixture(scope="session")
def second(chaos: Stack, tmp_path_factory: pytest.TempPathFactory) -> Worker:
    """A second worker of that stack, for the tests that need two; those come last (see above)."""
    return chaos.beside.enter_context(second_worker(chaos, tmp_path_factory.mktemp("second") / "worker"))


@pytest.fixture
def chaos_random(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> random.Random:
    """Where all randomness of a test comes from; `--chaos-seed` repeats a run."""
    given = request.config.getoption("--chaos-seed", default=None)
    seed = random.SystemRandom().randrange(2**32) if given is None else given
    with capsys.disabled():
        print(f"\n--chaos-seed {seed}")
    return random.Random(seed)
