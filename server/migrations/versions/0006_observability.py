"""Recent calls, for their account to look at."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers no other type by itself
    op.create_table(
        "observed_requests",
        sa.Column("number", number, nullable=False),
        sa.Column("id", sa.String(128), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("route", sa.String(200), nullable=False),
        sa.Column("status", sa.Integer(), nullable=False),
        sa.Column("model", sa.String(500), nullable=True),
        sa.Column("prompt", sa.Text(), nullable=True),
        sa.Column("output", sa.Text(), nullable=True),
        sa.Column("latency_ms", sa.Float(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("stream", sa.Boolean(), nullable=False),
        sa.Column("steering", sa.JSON(), nullable=True),
        sa.Column("behaviors", sa.JSON(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("searched", sa.Text(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_observed_requests"),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.id"],
            name="fk_observed_requests_account_id_accounts",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_observed_requests_account_id_number", "observed_requests", ["account_id", "number"]
    )
    op.create_index("ix_observed_requests_account_id_id", "observed_requests", ["account_id", "id"])
    op.create_index("ix_observed_requests_created_at", "observed_requests", ["created_at"])


def downgrade() -> None:
    op.drop_table("observed_requests")
