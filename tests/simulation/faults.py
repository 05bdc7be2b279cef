"""What goes wrong in one simulation: drawn from its seed, some kinds often, some never (swarm testing)."""

import random
from dataclasses import dataclass

KINDS_OF_EFFECT = ("redis", "sql", "rpc", "broker")


@dataclass(frozen=True)
class Rates:
    """Chances per effect."""

    delay: float = 0.0
    fail_before: float = 0.0
    fail_after: float = 0.0
    late: float = 0.0  # the caller is gone before the effect happens
    crash: float = 0.0
    duplicate: float = 0.0
    lose: float = 0.0


@dataclass(frozen=True)
class Fate:
    """What happens around one effect."""

    delay_before_s: float = 0.0
    delay_after_s: float = 0.0
    fails_before: bool = False
    fails_after: bool = False
    is_late: bool = False
    crashes_before: bool = False
    crashes_inside: bool = False
    crashes_after: bool = False


CALM = Fate()


@dataclass(frozen=True)
class Blow:
    """Something large that goes wrong at a certain time. `number` chooses who or which; `length_s` how long."""

    at_s: float
    what: str
    number: int
    length_s: float


@dataclass(frozen=True)
class Setting:
    """One world: who is there, what they do, and what will go wrong."""

    seed: int
    num_replicas: int
    num_workers: int
    num_slots: int
    num_postproc: int
    pools: tuple[str, ...]
    tenants: tuple[tuple[str, float, int], ...]  # id, weight, cap
    num_jobs: int
    checkpoint_steps: int
    fault_end_s: float
    skew_ms: int
    failing: float  # chance that an attempt fails by itself
    redelivers: float  # chance that a worker reads a hand-over twice
    sharded: float  # chance that a job is of a kind with several shards
    hurried: float  # chance that a job has a deadline
    has_classes: bool
    rates: dict[str, Rates]
    blows: tuple[Blow, ...]


BLOWS = (
    "wipe",
    "restore",
    "restore",
    "rewind",
    "restart",
    "redis_away",
    "sql_away",
    "kill_replica",
    "kill_worker",
    "kill_worker",
    "pause_worker",
    "pause_worker",
    "pause_replica",
    "cut_off_worker",
    "stop_worker",
    "broker_wipe",
    "drain",
    "cancel",
    "cancel",
    "delete",
)


def draw(seed: int, *, is_calm: bool = False) -> Setting:
    """Draw a world from a seed."""
    rng = random.Random(f"setting {seed}")
    fault_end_s = rng.uniform(8, 35)
    is_bad = not is_calm and rng.random() > 0.05
    rates = {kind: _rates(rng, kind) if is_bad else Rates() for kind in KINDS_OF_EFFECT}
    num_blows = rng.choice((1, 2, 3, 4, 6, 8)) if is_bad else 0
    chosen = rng.sample(sorted({*BLOWS}), rng.randint(2, 7))
    menu = [one for one in BLOWS if one in chosen]
    blows = [
        Blow(
            rng.uniform(0.5, fault_end_s * 0.8), rng.choice(menu), rng.randrange(1000), rng.choice((0.5, 3, 9, 12, 20))
        )
        for _ in range(num_blows)
    ]
    tenants = [(f"tenant-{i}", rng.choice((1.0, 1.0, 2.0, 4.0)), rng.choice((0, 0, 1, 2))) for i in range(3)]
    return Setting(
        seed=seed,
        num_replicas=rng.choice((1, 2, 2, 2)),
        num_workers=rng.choice((1, 2, 2, 3)),
        num_slots=rng.choice((1, 1, 2)),
        num_postproc=rng.choice((1, 2)),
        pools=("default", "large") if rng.random() < 0.25 else ("default",),
        tenants=tuple(tenants[: rng.choice((2, 3))]),
        num_jobs=rng.randint(3, 7),
        checkpoint_steps=rng.choice((2, 3, 5)),
        fault_end_s=fault_end_s,
        skew_ms=rng.choice((0, 0, 300, 1500)) if is_bad else 0,
        failing=rng.choice((0.0, 0.0, 0.1, 0.3)) if is_bad else 0.0,
        redelivers=rng.choice((0.0, 0.1)) if is_bad else 0.0,
        sharded=rng.choice((0.0, 0.0, 0.3)),
        hurried=rng.choice((0.0, 0.0, 0.3)),
        has_classes=rng.random() < 0.5,
        rates=rates,
        blows=tuple(sorted(blows, key=lambda blow: blow.at_s)),
    )


def _rates(rng: random.Random, kind: str) -> Rates:
    if rng.random() < 0.25:
        return Rates(delay=0.05)
    return Rates(
        delay=rng.choice((0.0, 0.1, 0.3)),
        fail_before=rng.choice((0.0, 0.0, 0.01, 0.04)),
        fail_after=rng.choice((0.0, 0.0, 0.01, 0.04)),
        late=rng.choice((0.0, 0.01)) if kind == "redis" else 0.0,
        crash=rng.choice((0.0, 0.0, 0.001, 0.003)),
        duplicate=rng.choice((0.0, 0.05)) if kind in ("rpc", "broker") else 0.0,
        lose=rng.choice((0.0, 0.05, 0.2)) if kind in ("rpc", "broker") else 0.0,
    )


class Injector:
    """Decides, effect by effect, what goes wrong; after `fault_end_s` nothing does."""

    def __init__(self, setting: Setting) -> None:
        self._rng = random.Random(f"faults {setting.seed}")
        self._rates = setting.rates
        self.is_over = False

    def fate(self, kind: str) -> Fate:
        """Decide about the next effect."""
        if self.is_over:
            return CALM
        rng, rates = self._rng, self._rates[kind]
        dice = rng.random()
        if dice >= rates.delay + rates.fail_before + rates.fail_after + rates.late + 3 * rates.crash:
            return CALM
        for what, chance in (
            ("delay", rates.delay),
            ("before", rates.fail_before),
            ("after", rates.fail_after),
            ("late", rates.late),
        ):
            if dice < chance:
                return self._make(what)
            dice -= chance
        return self._make(("crash_before", "crash_inside", "crash_after")[int(dice / rates.crash) % 3])

    def _make(self, what: str) -> Fate:
        rng = self._rng
        if what == "delay":
            long_s = rng.choice((0.003, 0.03, 0.3, 0.3, 1.5, 3.0))
            return Fate(delay_before_s=rng.random() * long_s, delay_after_s=rng.random() * long_s)
        if what == "before":
            return Fate(delay_before_s=rng.choice((0.0, 0.5)), fails_before=True)
        if what == "after":
            return Fate(delay_after_s=rng.choice((0.0, 0.5)), fails_after=True)
        if what == "late":
            return Fate(delay_before_s=rng.choice((0.01, 0.5, 2.0, 15.0)), is_late=True)
        return Fate(
            crashes_before=what == "crash_before",
            crashes_inside=what == "crash_inside",
            crashes_after=what == "crash_after",
        )

    def happens(self, chance: float) -> bool:
        """Toss a coin, unless faults are over."""
        return not self.is_over and chance > 0 and self._rng.random() < chance

    def loses(self, kind: str) -> bool:
        """Decide whether a message gets lost."""
        return self.happens(self._rates[kind].lose)

    def doubles(self, kind: str) -> bool:
        """Decide whether a message arrives twice."""
        return self.happens(self._rates[kind].duplicate)

    def lag_s(self) -> float:
        """Draw how late something arrives."""
        return 0.0 if self.is_over else self._rng.choice((0.0, 0.01, 0.3, 2.0, 15.0)) * self._rng.random()

    def choose(self, number: int) -> int:
        """Draw a number below `number`."""
        return self._rng.randrange(number)
