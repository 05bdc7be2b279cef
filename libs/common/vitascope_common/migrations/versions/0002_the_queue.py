"""what the queue keeps: deadlines, retries, shards, classes, drains, corrected costs"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def _create_partial_index(name: str, table: str, columns: list[str], where: str) -> None:
    op.create_index(name, table, columns, sqlite_where=sa.text(where), postgresql_where=sa.text(where))


def upgrade() -> None:
    op.create_table(
        "cost_ratios",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("model", sa.Text(), nullable=False),
        sa.Column("ratio", sa.Float(), nullable=False),
        sa.Column("estimate_s", sa.Float(), nullable=False),
        sa.Column("num_runs", sa.BigInteger(), nullable=False),
        sa.Column("updated_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "model", name=op.f("pk_cost_ratios")),
    )
    op.create_table(
        "drains",
        sa.Column("pool", sa.Text(), nullable=False),
        sa.Column("worker_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("pool", "worker_id", name=op.f("pk_drains")),
    )
    op.add_column("tenants", sa.Column("classes", sa.Text(), server_default="standard,batch", nullable=False))
    op.add_column("api_keys", sa.Column("scopes", sa.Text(), server_default="", nullable=False))
    op.add_column("jobs", sa.Column("deadline_at_ms", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("retry_of", sa.Text(), nullable=True))
    op.add_column("jobs", sa.Column("swept_at_ms", sa.BigInteger(), nullable=True))
    op.create_index("ix_jobs_finished", "jobs", ["finished_at_ms"])
    _create_partial_index(
        "ix_jobs_deadline", "jobs", ["finished_at_ms", "deadline_at_ms"], "deadline_at_ms IS NOT NULL"
    )
    _create_partial_index("ix_jobs_to_sweep", "jobs", ["finished_at_ms", "job_id"], "swept_at_ms IS NULL")
    op.create_index("ix_tasks_line", "tasks", ["state", "pool", "created_at_ms", "task_id"])
    op.create_index("ix_outbox_topic", "outbox", ["topic", "outbox_id"])
    op.add_column("tasks", sa.Column("needs", sa.Text(), server_default="", nullable=False))
    op.add_column("tasks", sa.Column("needs_same_shard", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("tasks", sa.Column("publishes", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("tasks", sa.Column("cost_ratio", sa.Float(), server_default=sa.text("1"), nullable=False))
    op.add_column("tasks", sa.Column("num_outages", sa.BigInteger(), server_default=sa.text("0"), nullable=False))
    op.add_column("tasks", sa.Column("ran_s", sa.Float(), server_default=sa.text("0"), nullable=False))
    op.add_column("tasks", sa.Column("yielded_at_s", JSON, server_default="[]", nullable=False))
    # Jobs that are under way: what the program knew of their kind until now.
    tasks = sa.table("tasks", sa.column("stage"), sa.column("needs"), sa.column("publishes", sa.Boolean()))
    op.execute(tasks.update().where(tasks.c.stage == "finish").values(needs="generate", publishes=sa.true()))


def downgrade() -> None:
    op.drop_index("ix_outbox_topic", "outbox")
    op.drop_index("ix_tasks_line", "tasks")
    for column in ("yielded_at_s", "ran_s", "num_outages", "cost_ratio", "publishes", "needs_same_shard", "needs"):
        op.drop_column("tasks", column)
    for index in ("ix_jobs_to_sweep", "ix_jobs_deadline", "ix_jobs_finished"):
        op.drop_index(index, "jobs")
    for column in ("swept_at_ms", "retry_of", "deadline_at_ms"):
        op.drop_column("jobs", column)
    op.drop_column("api_keys", "scopes")
    op.drop_column("tenants", "classes")
    op.drop_table("drains")
    op.drop_table("cost_ratios")
