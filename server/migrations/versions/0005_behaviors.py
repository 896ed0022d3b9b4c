"""Behaviours: what tells them in an autoencoder's latents, and the vector that steers against them."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "behaviors",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("model_name", sa.String(500), nullable=False),
        sa.Column("model_fingerprint", sa.String(64), nullable=False),
        sa.Column("sae", sa.String(64), nullable=False),
        sa.Column("sae_source", sa.Text(), nullable=False),
        sa.Column("sae_digest", sa.String(64), nullable=False),
        sa.Column("layer", sa.Integer(), nullable=False),
        sa.Column("hook", sa.Text(), nullable=False),
        sa.Column("baseline", sa.JSON(), nullable=False),
        sa.Column("detector_digest", sa.String(64), nullable=False),
        sa.Column("detector", sa.LargeBinary(), nullable=False),
        # No foreign key: a behaviour outlives its vector, and says which one it misses.
        sa.Column("steering_vector_id", sa.String(36), nullable=False),
        sa.Column("strength", sa.Float(), nullable=True),
        sa.Column("pairs", sa.JSON(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_behaviors"),
        sa.UniqueConstraint(
            "account_id",
            "model_fingerprint",
            "name",
            name="uq_behaviors_account_id_model_fingerprint_name",
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_behaviors_account_id_accounts", ondelete="CASCADE"
        ),
    )


def downgrade() -> None:
    op.drop_table("behaviors")
