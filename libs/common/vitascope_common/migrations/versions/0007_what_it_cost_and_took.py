"""what a job costs and took, and whether there are previews of it"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

JSON = sa.JSON().with_variant(JSONB(), "postgresql")
revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("price_usd_micros", sa.BigInteger(), nullable=True))
    op.add_column("jobs", sa.Column("has_previews", sa.Boolean(), server_default=sa.false(), nullable=False))
    op.add_column("jobs", sa.Column("meters", JSON, server_default="{}", nullable=False))


def downgrade() -> None:
    for name in ("meters", "has_previews", "price_usd_micros"):
        op.drop_column("jobs", name)
