"""What runs of a model really cost over what its card estimates: learned here, applied at admission.

Exponentially weighted moving averages of actual and estimate, one ratio of the two per pool and model: a run counts by
its size. The first runs count as in a plain mean, so that a wrong card is corrected within a few videos.
"""

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from vitascope_common.database import upsert_into
from vitascope_common.tables import cost_ratios
from vitascope_scheduler.tasks import TaskRow

ALPHA = 0.1  # weight of a new run
NUM_FIRST = 10  # runs that weigh 1/n
MIN_RATIO, MAX_RATIO = 0.1, 10.0  # one run beyond says that something else was wrong


async def learn(connection: AsyncConnection, done: TaskRow, now_ms: int) -> None:
    """Take a finished task into the average of its pool and model, if its first attempt did all of it.

    One statement, and the last one of its transaction: many jobs meet in this row.
    """
    model = str(done.affinity.get("model") or "")
    estimate_s = done.cost_s / done.cost_ratio if done.cost_ratio > 0 else 0.0
    if done.attempt != 1 or not model or estimate_s <= 0 or done.actual_s <= 0:
        return
    observed = min(MAX_RATIO, max(MIN_RATIO, done.actual_s / estimate_s))
    weight = sa.case(
        (cost_ratios.c.num_runs < NUM_FIRST, sa.literal(1.0, sa.Float) / (cost_ratios.c.num_runs + 1)),
        else_=sa.literal(ALPHA),
    )
    mean_s = cost_ratios.c.estimate_s + weight * (estimate_s - cost_ratios.c.estimate_s)
    first = {"pool": done.pool, "model": model, "ratio": observed, "estimate_s": estimate_s}
    first |= {"num_runs": 1, "updated_at_ms": now_ms}
    await connection.execute(
        upsert_into(connection, cost_ratios)
        .values(first)
        .on_conflict_do_update(
            index_elements=[cost_ratios.c.pool, cost_ratios.c.model],
            set_={
                "ratio": cost_ratios.c.ratio + weight * estimate_s / mean_s * (observed - cost_ratios.c.ratio),
                "estimate_s": mean_s,
                "num_runs": cost_ratios.c.num_runs + 1,
                "updated_at_ms": now_ms,
            },
        )
    )
