"""Metrics of projects, completions to be found and scored one by one, comparisons and outcomes."""

import hashlib
import json
import uuid
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None

_BATCH = 500
_NAMESPACE = uuid.UUID("6f2f7bd4-6c0c-5f0e-9a0f-2b6f7f6f7a11")
_NUMBER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
_MOMENT = sa.DateTime(timezone=True)
_FOUND_BY = ("model", "prompt_hash", "session_id", "user_id", "source")


def upgrade() -> None:
    op.create_table(
        "metrics",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("key", sa.String(200), nullable=False),
        sa.Column("name", sa.String(200), nullable=False),
        sa.Column("kind", sa.String(10), nullable=False),
        sa.Column("scoring", sa.String(20), nullable=False),
        sa.Column("description", sa.Text(), nullable=False),
        sa.Column("unit", sa.String(200), nullable=True),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_metrics"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_metrics_account_id_accounts", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_metrics_account_id_key", "metrics", ["account_id", "key"], unique=True)
    op.create_table(
        "completions",
        sa.Column("number", _NUMBER, nullable=False, autoincrement=False),
        sa.Column("choice", sa.Integer(), nullable=False, autoincrement=False),
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.Column("model", sa.String(500), nullable=False),
        sa.Column("session_id", sa.String(200), nullable=True),
        sa.Column("user_id", sa.String(200), nullable=True),
        sa.Column("prompt_hash", sa.String(64), nullable=False),
        sa.Column("source", sa.String(10), nullable=False),
        sa.Column("campaign_id", sa.String(36), nullable=True),
        sa.Column("variant", sa.String(500), nullable=True),
        sa.PrimaryKeyConstraint("number", "choice", name="pk_completions"),
        sa.ForeignKeyConstraint(
            ["number"], ["interactions.number"], name="fk_completions_number_interactions", ondelete="CASCADE"
        ),
    )
    op.create_table(
        "comparisons",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("preferred_number", _NUMBER, nullable=False),
        sa.Column("preferred_choice", sa.Integer(), nullable=False),
        sa.Column("other_number", _NUMBER, nullable=False),
        sa.Column("other_choice", sa.Integer(), nullable=False),
        sa.Column("tied", sa.String(4), nullable=True),
        sa.Column("user_id", sa.String(200), nullable=True),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_comparisons"),
        sa.ForeignKeyConstraint(
            ["preferred_number"],
            ["interactions.number"],
            name="fk_comparisons_preferred_number_interactions",
            ondelete="CASCADE",
        ),
        sa.ForeignKeyConstraint(
            ["other_number"],
            ["interactions.number"],
            name="fk_comparisons_other_number_interactions",
            ondelete="CASCADE",
        ),
    )
    op.create_index("ix_comparisons_account_id_metric", "comparisons", ["account_id", "metric"])
    op.create_index("ix_comparisons_preferred_number", "comparisons", ["preferred_number"])
    op.create_index("ix_comparisons_other_number", "comparisons", ["other_number"])
    op.create_table(
        "outcomes",
        sa.Column("id", sa.String(36), nullable=False),
        sa.Column("account_id", sa.String(36), nullable=False),
        sa.Column("metric", sa.String(200), nullable=False),
        sa.Column("value", sa.Float(), nullable=False),
        sa.Column("session_id", sa.String(200), nullable=False),
        sa.Column("user_id", sa.String(200), nullable=True),
        sa.Column("created_at", _MOMENT, nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_outcomes"),
        sa.ForeignKeyConstraint(
            ["account_id"], ["accounts.id"], name="fk_outcomes_account_id_accounts", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_outcomes_account_id_session_id", "outcomes", ["account_id", "session_id"])
    op.create_index("ix_outcomes_created_at", "outcomes", ["created_at"])
    _widen_interactions()
    _widen_feedback()
    _fill()
    # After the rows: an index is made faster than it is kept.
    op.create_index("ix_completions_account_id_id", "completions", ["account_id", "id"])
    ordered = ["created_at", "number", "choice"]
    op.create_index(f"ix_completions_account_id_{'_'.join(ordered)}", "completions", ["account_id", *ordered])
    for column in _FOUND_BY:
        columns = ["account_id", column, *ordered]
        op.create_index(f"ix_completions_{'_'.join(columns)}", "completions", columns)
    op.create_index("ix_completions_campaign_id_variant", "completions", ["campaign_id", "variant"])


def _widen_interactions() -> None:
    with op.batch_alter_table("interactions") as batch:
        batch.add_column(sa.Column("source", sa.String(10), nullable=True))
        batch.add_column(sa.Column("user_id", sa.String(200), nullable=True))
        batch.add_column(sa.Column("campaign_id", sa.String(36), nullable=True))
        batch.add_column(sa.Column("variant", sa.String(500), nullable=True))
        batch.add_column(sa.Column("stored_at", _MOMENT, nullable=True))
    op.execute("UPDATE interactions SET source = 'LIVE', stored_at = created_at")
    with op.batch_alter_table("interactions") as batch:
        batch.drop_index("ix_interactions_created_at")
        # The defaults are for servers of the release before, which go on while replicas are upgraded.
        batch.alter_column("source", existing_type=sa.String(10), nullable=False, server_default="LIVE")
        batch.alter_column("stored_at", existing_type=_MOMENT, nullable=False, server_default=sa.func.now())
        batch.create_index("ix_interactions_stored_at", ["stored_at"])


def _widen_feedback() -> None:
    with op.batch_alter_table("feedback") as batch:
        batch.add_column(sa.Column("account_id", sa.String(36), nullable=True))
        batch.add_column(sa.Column("choice", sa.Integer(), nullable=True))
        batch.add_column(sa.Column("user_id", sa.String(200), nullable=True))
    op.execute(
        "UPDATE feedback SET choice = 0, account_id ="
        " (SELECT account_id FROM interactions WHERE interactions.number = feedback.number)"
    )
    with op.batch_alter_table("feedback") as batch:
        batch.alter_column("account_id", existing_type=sa.String(36), nullable=False)
        batch.alter_column("choice", existing_type=sa.Integer(), nullable=False, server_default="0")
        batch.create_index("ix_feedback_account_id_metric", ["account_id", "metric"])
    if op.get_bind().dialect.name == "postgresql":  # with SQLite there is no server beside this one
        op.execute(
            "CREATE FUNCTION feedback_owner() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
            " NEW.account_id = coalesce(NEW.account_id,"
            " (SELECT account_id FROM interactions WHERE number = NEW.number)); RETURN NEW; END $$"
        )
        op.execute(
            "CREATE TRIGGER feedback_owner BEFORE INSERT ON feedback"
            " FOR EACH ROW EXECUTE FUNCTION feedback_owner()"
        )


def _table(name: str, *columns: str) -> Any:
    return sa.table(
        name, *(sa.column(each, _MOMENT if each == "created_at" else None) for each in columns)
    )


def _fill() -> None:
    """Completions of what is stored, and metrics of what was scored."""
    connection = op.get_bind()
    asked = ("messages", "parameters", "answer")
    stored = _table(
        "interactions", "number", "id", "account_id", "model", "session_id", "user_id", "created_at", *asked
    )
    number, last = stored.c.number, 0
    while rows := connection.execute(
        sa.select(stored).where(number > last).order_by(number).limit(_BATCH)
    ).all():
        last = rows[-1].number
        made = [completion for row in rows for completion in _completions(row)]
        if made:
            connection.execute(sa.insert(_table("completions", *made[0])), made)
        for each, user in {row["number"]: row["user_id"] for row in made if row["user_id"]}.items():
            connection.execute(sa.update(stored).where(number == each).values(user_id=user))
    scored = _table("feedback", "account_id", "metric", "created_at")
    pair = (scored.c.account_id, scored.c.metric)
    first = sa.select(*pair, sa.func.min(scored.c.created_at).label("at")).group_by(*pair)
    metrics = [_metric(*row) for row in connection.execute(first).all()]
    if metrics:
        connection.execute(sa.insert(_table("metrics", *metrics[0])), metrics)


def _completions(row: Any) -> list[dict[str, Any]]:
    asked, answer = json.loads(row.parameters), json.loads(row.answer)
    user = asked.get("user")
    shared = {
        "number": row.number,
        "account_id": row.account_id,
        "created_at": row.created_at,
        "model": row.model,
        "session_id": row.session_id,
        "user_id": user[:200] if isinstance(user, str) else None,
        "prompt_hash": _prompt_hash(json.loads(row.messages)),
        "source": "LIVE",
        "campaign_id": None,
        "variant": None,
    }
    indices = {each.get("index", place) for place, each in enumerate(answer["choices"])}
    return [
        {"choice": index, "id": str(uuid.uuid5(_NAMESPACE, f"{row.account_id}/{index}/{row.id}")), **shared}
        for index in sorted(indices)
    ]


def _prompt_hash(messages: list[dict[str, Any]]) -> str:
    plain = [
        [each.get("role"), _plain(each.get("content")), [each.get("tool_calls"), each.get("tool_call_id")]]
        for each in messages
    ]
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def _plain(content: Any) -> Any:
    part = content[0] if isinstance(content, list) and len(content) == 1 else None
    return part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else content


def _metric(account_id: str, key: str, created_at: datetime) -> dict[str, Any]:
    return {
        "id": str(uuid.uuid4()),
        "account_id": account_id,
        "key": key,
        "name": key,
        "kind": "SCALAR",
        "scoring": "HIGHER_IS_BETTER",
        "description": "",
        "unit": None,
        "created_at": created_at,
    }


def downgrade() -> None:
    """Scores of other choices than the first go: they would be taken for its."""
    if op.get_bind().dialect.name == "postgresql":
        op.execute("DROP TRIGGER feedback_owner ON feedback")
        op.execute("DROP FUNCTION feedback_owner()")
    op.execute("DELETE FROM feedback WHERE choice <> 0")
    with op.batch_alter_table("feedback") as batch:
        batch.drop_index("ix_feedback_account_id_metric")
        batch.drop_column("user_id")
        batch.drop_column("choice")
        batch.drop_column("account_id")
    with op.batch_alter_table("interactions") as batch:
        batch.drop_index("ix_interactions_stored_at")
        for column in ("source", "user_id", "campaign_id", "variant", "stored_at"):
            batch.drop_column(column)
        batch.create_index("ix_interactions_created_at", ["created_at"])
    for table in ("outcomes", "comparisons", "completions", "metrics"):
        op.drop_table(table)
