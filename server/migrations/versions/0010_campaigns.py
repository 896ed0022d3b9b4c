"""A/B tests."""

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "campaigns",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("score_type", sa.String(10), nullable=False),
        sa.Column("status", sa.String(11), nullable=False),
        sa.Column("traffic_split", sa.Float(), nullable=False),
        sa.Column("auto_deploy", sa.Boolean(), nullable=False),
        sa.Column("models", sa.JSON(), nullable=False),
        sa.Column("alpha", sa.Float(), nullable=False),
        sa.Column("min_scores", sa.Integer(), nullable=False),
        sa.Column("begin_date", sa.DateTime(timezone=True), nullable=False),
        sa.Column("end_date", sa.DateTime(timezone=True), nullable=True),
        sa.Column("winner", sa.String(500), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_campaigns"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_campaigns_account_id_accounts", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_campaigns_account_id_key", "campaigns", ["account_id", "key"], unique=True)
    op.create_index("ix_campaigns_status", "campaigns", ["status"])


def downgrade() -> None:
    op.drop_table("campaigns")
