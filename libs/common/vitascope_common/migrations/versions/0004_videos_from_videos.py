"""videos that are made from videos"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("remixed_from", sa.Text(), nullable=True))


def downgrade() -> None:
    op.drop_column("jobs", "remixed_from")
