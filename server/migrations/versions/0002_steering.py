"""Steering vectors, and the jobs that make them."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "steering_vectors",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=True),
        sa.Column("preset", sa.String(60), nullable=True),
        sa.Column("name", sa.String(200), nullable=True),
        sa.Column("label", sa.String(200), nullable=True),
        sa.Column("category", sa.String(200), nullable=True),
        sa.Column("method", sa.String(40), nullable=False),
        sa.Column("model_name", sa.String(500), nullable=False),
        sa.Column("model_fingerprint", sa.String(64), nullable=True),
        sa.Column("width", sa.Integer(), nullable=False),
        sa.Column("layers", sa.JSON(), nullable=False),
        sa.Column("norms", sa.JSON(), nullable=False),
        sa.Column("doses", sa.JSON(), nullable=True),
        sa.Column("scale", sa.Float(), nullable=True),
        sa.Column("dataset_digest", sa.String(64), nullable=True),
        sa.Column("evidence", sa.JSON(), nullable=True),
        sa.Column("digest", sa.String(64), nullable=False),
        sa.Column("blob", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_steering_vectors"),
        sa.UniqueConstraint(
            "preset",
            "model_fingerprint",
            "account_id",
            name="uq_steering_vectors_preset_model_fingerprint_account_id",
        ),
        sa.ForeignKeyConstraint(
            ["account_id"],
            ["accounts.id"],
            name="fk_steering_vectors_account_id_accounts",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_steering_vectors_account_id", "steering_vectors", ["account_id"])
    # Nulls differ from each other in the constraint above, and the presets that all share have no account.
    op.create_index(
        "ix_steering_vectors_shared_presets",
        "steering_vectors",
        ["preset", "model_fingerprint"],
        unique=True,
        sqlite_where=sa.text("account_id IS NULL"),
        postgresql_where=sa.text("account_id IS NULL"),
    )
    op.create_table(
        "steering_jobs",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("kind", sa.String(40), nullable=False),
        sa.Column("model_fingerprint", sa.String(64), nullable=True),
        sa.Column("request", sa.JSON(), nullable=False),
        sa.Column("status", sa.String(20), nullable=False),
        sa.Column("progress", sa.JSON(), nullable=True),
        sa.Column("result", sa.JSON(), nullable=True),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("owner", sa.String(36), nullable=True),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_steering_jobs"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_steering_jobs_account_id_accounts", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_steering_jobs_account_id", "steering_jobs", ["account_id"])
    op.create_index("ix_steering_jobs_status_created_at", "steering_jobs", ["status", "created_at"])
    op.create_index("ix_steering_jobs_finished_at", "steering_jobs", ["finished_at"])


def downgrade() -> None:
    op.drop_table("steering_jobs")
    op.drop_table("steering_vectors")
