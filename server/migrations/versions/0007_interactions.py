"""Interactions: chat completions that are kept with what was asked, their labels, and what people thought."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    number = sa.BigInteger().with_variant(sa.Integer(), "sqlite")  # SQLite numbers no other type by itself
    op.create_table(
        "interactions",
        sa.Column("number", number, nullable=False),
        sa.Column("id", sa.String(200), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("model", sa.String(500), nullable=False),
        sa.Column("session_id", sa.String(200), nullable=True),
        sa.Column("messages", sa.Text(), nullable=False),
        sa.Column("parameters", sa.Text(), nullable=False),
        sa.Column("answer", sa.Text(), nullable=False),
        sa.Column("labels", sa.Text(), nullable=False),
        sa.Column("prompt_tokens", sa.BigInteger(), nullable=False),
        sa.Column("completion_tokens", sa.BigInteger(), nullable=False),
        sa.Column("latency_ms", sa.Float(), nullable=False),
        sa.Column("first_token_ms", sa.Float(), nullable=True),
        sa.PrimaryKeyConstraint("number", name="pk_interactions"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_interactions_account_id_accounts", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_interactions_account_id_number", "interactions", ["account_id", "number"])
    op.create_index("ix_interactions_account_id_id", "interactions", ["account_id", "id"])
    op.create_index(
        "ix_interactions_account_id_model_number", "interactions", ["account_id", "model", "number"]
    )
    op.create_index("ix_interactions_created_at", "interactions", ["created_at"])
    op.create_table(
        "interaction_labels",
        sa.Column("number", number, nullable=False, autoincrement=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("value", sa.String(512), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.PrimaryKeyConstraint("number", "key", name="pk_interaction_labels"),
        sa.ForeignKeyConstraint(
            ["number"],
            ["interactions.number"],
            name="fk_interaction_labels_number_interactions",
            ondelete="CASCADE",
        ),
    )
    op.create_index(
        "ix_interaction_labels_account_id_key_value_number",
        "interaction_labels",
        ["account_id", "key", "value", "number"],
    )
    op.create_table(
        "feedback",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("number", number, nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("details", sa.Text(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_feedback"),
        sa.ForeignKeyConstraint(
            ["number"], ["interactions.number"], name="fk_feedback_number_interactions", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_feedback_number", "feedback", ["number"])


def downgrade() -> None:
    op.drop_table("feedback")
    op.drop_table("interaction_labels")
    op.drop_table("interactions")
