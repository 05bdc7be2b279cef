"""files, and batches of requests"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    count = sa.Column("num_batches", sa.BigInteger(), server_default=sa.text("0"), nullable=False)
    op.add_column("tenants", count)
    op.create_table(
        "files",
        sa.Column("file_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("filename", sa.Text(), nullable=False),
        sa.Column("purpose", sa.Text(), nullable=False),
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("sha256", sa.Text(), server_default="", nullable=False),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("stored_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("expires_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("deleted_at_ms", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("file_id", name=op.f("pk_files")),
    )
    op.create_index("ix_files_page", "files", ["tenant_id", "created_at_ms", "file_id"])
    op.create_index("ix_files_expired", "files", ["expires_at_ms"])
    op.create_table(
        "batches",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("input_file_id", sa.Text(), nullable=False),
        sa.Column("labels", JSON, nullable=False),
        sa.Column("base_url", sa.Text(), server_default="", nullable=False),
        sa.Column("output_ttl_ms", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("errors", JSON, nullable=False),
        sa.Column("num_lines", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_completed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("num_failed", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("output_file_id", sa.Text(), nullable=True),
        sa.Column("error_file_id", sa.Text(), nullable=True),
        sa.Column("created_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("deadline_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("in_progress_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("finalizing_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("cancelling_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("ended_at_ms", sa.BigInteger(), nullable=True),
        sa.Column("next_at_ms", sa.BigInteger(), nullable=False),
        sa.Column("claim", sa.Text(), nullable=True),
        sa.PrimaryKeyConstraint("batch_id", name=op.f("pk_batches")),
    )
    op.create_index("ix_batches_page", "batches", ["tenant_id", "created_at_ms", "batch_id"])
    for name, column in (("ix_batches_due", "next_at_ms"), ("ix_batches_input", "input_file_id")):
        where = sa.text("ended_at_ms IS NULL")
        op.create_index(name, "batches", [column], sqlite_where=where, postgresql_where=where)
    op.create_index("ix_batches_ended", "batches", ["ended_at_ms"])
    op.create_table(
        "batch_lines",
        sa.Column("batch_id", sa.Text(), nullable=False),
        sa.Column("line", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("tenant_id", sa.Text(), nullable=False),
        sa.Column("custom_id", sa.Text(), nullable=False),
        sa.Column("start_byte", sa.BigInteger(), nullable=False),
        sa.Column("num_bytes", sa.BigInteger(), nullable=False),
        sa.Column("state", sa.Text(), nullable=False),
        sa.Column("job_id", sa.Text(), nullable=True),
        sa.Column("num_tries", sa.BigInteger(), server_default=sa.text("0"), nullable=False),
        sa.Column("status_code", sa.BigInteger(), nullable=True),
        sa.Column("error", JSON, nullable=False),
        sa.ForeignKeyConstraint(["batch_id"], ["batches.batch_id"], name=op.f("fk_batch_lines_batch_id_batches")),
        sa.PrimaryKeyConstraint("batch_id", "line", name=op.f("pk_batch_lines")),
    )
    op.create_index("ix_batch_lines_state", "batch_lines", ["batch_id", "state", "num_tries", "line"])
    op.create_index("ix_batch_lines_job", "batch_lines", ["job_id"])


def downgrade() -> None:
    op.drop_table("batch_lines")
    op.drop_table("batches")
    op.drop_table("files")
    op.drop_column("tenants", "num_batches")
