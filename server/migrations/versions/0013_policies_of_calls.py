"""What a call's policy came to, beside its steering and behaviours."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("observed_requests") as batch:
        batch.add_column(sa.Column("policies", sa.JSON(), nullable=True))


def downgrade() -> None:
    with op.batch_alter_table("observed_requests") as batch:
        batch.drop_column("policies")
