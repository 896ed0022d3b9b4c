"""A policy's id is unique within its account, no longer among all."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("policy_versions") as versions:
        versions.add_column(sa.Column("account_id", sa.String(36), nullable=True))
        versions.drop_constraint("fk_policy_versions_policy_id_policies", type_="foreignkey")
        versions.drop_constraint("pk_policy_versions", type_="primary")
    op.execute(
        "UPDATE policy_versions SET account_id ="
        " (SELECT account_id FROM policies WHERE policies.id = policy_versions.policy_id)"
    )
    with op.batch_alter_table("policies") as policies:
        policies.drop_constraint("pk_policies", type_="primary")
        policies.create_primary_key("pk_policies", ["account_id", "id"])
    with op.batch_alter_table("policy_versions") as versions:
        versions.alter_column("account_id", existing_type=sa.String(36), nullable=False)
        versions.create_primary_key("pk_policy_versions", ["account_id", "policy_id", "version"])
        versions.create_foreign_key(
            "fk_policy_versions_account_id_policy_id_policies",
            "policies",
            ["account_id", "policy_id"],
            ["account_id", "id"],
            ondelete="CASCADE",
        )


def downgrade() -> None:
    shared = sa.text("SELECT id FROM policies GROUP BY id HAVING count(*) > 1 ORDER BY id LIMIT 1")
    found = op.get_bind().execute(shared).scalar()
    if found is not None:
        raise RuntimeError(
            f"several accounts have a policy {found!r}: delete all but one before the downgrade"
        )
    with op.batch_alter_table("policy_versions") as versions:
        versions.drop_constraint("fk_policy_versions_account_id_policy_id_policies", type_="foreignkey")
        versions.drop_constraint("pk_policy_versions", type_="primary")
    with op.batch_alter_table("policies") as policies:
        policies.drop_constraint("pk_policies", type_="primary")
        policies.create_primary_key("pk_policies", ["id"])
    with op.batch_alter_table("policy_versions") as versions:
        versions.drop_column("account_id")
        versions.create_primary_key("pk_policy_versions", ["policy_id", "version"])
        versions.create_foreign_key(
            "fk_policy_versions_policy_id_policies", "policies", ["policy_id"], ["id"], ondelete="CASCADE"
        )
