"""Limits of keys, and what is left of them. Only what may be null and what is new: the version before goes on."""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "0012"
down_revision = "0011"
branch_labels = None
depends_on = None

_LIMITS = ("requests_per_minute", "tokens_per_minute", "concurrent_requests")


def upgrade() -> None:
    with op.batch_alter_table("api_keys") as batch:
        for column in _LIMITS:
            batch.add_column(sa.Column(column, sa.Integer(), nullable=True))
    # Unlogged: nobody waits for a disk. After a crash of PostgreSQL the buckets are full again.
    unlogged = ["UNLOGGED"] if op.get_bind().dialect.name == "postgresql" else []
    op.create_table(
        "quotas",
        sa.Column("subject", sa.String(36), nullable=False),
        sa.Column("requests", sa.Double(), nullable=False),
        sa.Column("tokens", sa.Double(), nullable=False),
        sa.Column("running", sa.JSON().with_variant(postgresql.JSONB(), "postgresql"), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("admitted", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("subject", name="pk_quotas"),
        prefixes=unlogged,
    )


def downgrade() -> None:
    op.drop_table("quotas")
    with op.batch_alter_table("api_keys") as batch:
        for column in reversed(_LIMITS):
            batch.drop_column(column)
