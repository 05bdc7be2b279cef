"""What tenants got: pure arithmetic on the jobs that were served."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tests.bench.pool import Served


def consumed_s(served: Sequence[Served], tenant: str, since_s: float, until_s: float) -> float:
    """Return the server seconds that a tenant's jobs took between two moments."""
    return sum(
        max(0.0, min(one.ended_s, until_s) - max(one.begun_s, since_s)) for one in served if one.job.tenant == tenant
    )


@dataclass(frozen=True)
class Gap:
    """The largest |W_i/w_i - W_j/w_j| of two tenants, in seconds of a server, between two moments."""

    from_start_s: float  # of windows that begin at the first of the two moments
    any_window_s: float


def gap(served: Sequence[Served], weights: Mapping[str, float], since_s: float, until_s: float) -> Gap:
    """Measure how far the services of any two tenants part between two moments.

    Service W counts when it is consumed, second by second: a straight line between the moments at which jobs begin and
    end. The difference of two such lines is extreme at one of these moments, and its largest change over any window is
    its maximum less its minimum.
    """
    changes = sorted(
        (moment_s, one.job.tenant, step) for one in served for moment_s, step in ((one.begun_s, 1), (one.ended_s, -1))
    )
    tenants = list(weights)
    num_running, service_s, now_s = dict.fromkeys(tenants, 0), dict.fromkeys(tenants, 0.0), 0.0
    pairs = [(a, b) for i, a in enumerate(tenants) for b in tenants[i + 1 :]]
    first, lowest, highest = (
        dict[tuple[str, str], float](),
        dict.fromkeys(pairs, math.inf),
        dict.fromkeys(pairs, -math.inf),
    )

    def advance(to_s: float) -> None:
        nonlocal now_s
        for tenant in tenants:
            service_s[tenant] += num_running[tenant] * (to_s - now_s) / weights[tenant]
        now_s = to_s

    def look() -> None:
        for a, b in pairs:
            difference_s = service_s[a] - service_s[b]
            first.setdefault((a, b), difference_s)
            lowest[a, b], highest[a, b] = min(lowest[a, b], difference_s), max(highest[a, b], difference_s)

    for moment_s, tenant, step in changes:
        if now_s <= since_s < moment_s:
            advance(since_s)
            look()
        if moment_s >= until_s:
            break
        advance(moment_s)
        num_running[tenant] += step
        if moment_s >= since_s:
            look()
    advance(until_s)
    look()
    return Gap(
        max(max(highest[pair] - first[pair], first[pair] - lowest[pair]) for pair in pairs),
        max(highest[pair] - lowest[pair] for pair in pairs),
    )


def jain(values: Sequence[float]) -> float:
    """Return Jain's index: 1 when all are equal, 1/n when one has everything."""
    return sum(values) ** 2 / (len(values) * sum(value * value for value in values))


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that at least this share of them does not exceed (nearest rank)."""
    return sorted(values)[max(0, math.ceil(share * len(values)) - 1)]
