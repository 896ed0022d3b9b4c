"""Projects with their members and aliases; what a key may do at most."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "projects",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(64), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("description", sa.Text(), nullable=True),
        sa.Column("default_model", sa.String(500), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_projects"),
        sa.UniqueConstraint("key", name="uq_projects_key"),
        sa.ForeignKeyConstraint(["id"], ["accounts.id"], name="fk_projects_id_accounts", ondelete="CASCADE"),
    )
    op.create_table(
        "memberships",
        sa.Column("project_id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("role", sa.String(16), nullable=False),
        sa.PrimaryKeyConstraint("project_id", "account_id", name="pk_memberships"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["accounts.id"], name="fk_memberships_project_id_accounts", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_memberships_account_id_accounts", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_memberships_account_id", "memberships", ["account_id"])
    op.create_table(
        "aliases",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("project_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("model", sa.String(500), nullable=False),
        sa.Column("defaults", sa.Text(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_aliases"),
        sa.UniqueConstraint("project_id", "key", name="uq_aliases_project_id_key"),
        sa.ForeignKeyConstraint(
            ["project_id"], ["accounts.id"], name="fk_aliases_project_id_accounts", ondelete="CASCADE"
        ),
    )
    with op.batch_alter_table("api_keys") as table:
        table.add_column(sa.Column("role", sa.String(16), nullable=False, server_default="owner"))


def downgrade() -> None:
    # What belongs to a project that nobody can enter would stay for ever.
    op.execute("DELETE FROM accounts WHERE id IN (SELECT project_id FROM memberships)")
    with op.batch_alter_table("api_keys") as table:
        table.drop_column("role")
    op.drop_table("aliases")
    op.drop_table("memberships")
    op.drop_table("projects")
