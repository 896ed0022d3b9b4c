"""Scalars of the schema beyond GraphQL's own, whose integers have 32 bits."""

import uuid
from datetime import UTC, datetime, timedelta
from typing import Any, NewType

import strawberry
from graphql import GraphQLError
from strawberry.types.scalar import ScalarDefinition

Uuid = NewType("Uuid", str)
IdOrKey = NewType("IdOrKey", str)
Timestamp = NewType("Timestamp", datetime)
Long = NewType("Long", int)

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_WRITTEN = "a time is milliseconds since 1970, or ISO 8601 such as 2026-01-31T12:00:00Z"


def milliseconds(moment: datetime) -> int:
    return (moment - _EPOCH) // timedelta(milliseconds=1)


def _moment(value: Any) -> datetime:
    """Without a zone it is UTC. Raises GraphQLError for what is no time."""
    try:
        if isinstance(value, str):
            moment = datetime.fromisoformat(value)
            return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        if isinstance(value, int) and not isinstance(value, bool):
            return _EPOCH + timedelta(milliseconds=value)
    except (ValueError, OverflowError) as error:
        raise GraphQLError(f"{value!r} is no time: {_WRITTEN}") from error
    raise GraphQLError(f"{value!r} is no time: {_WRITTEN}")


def _id_or_key(value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise GraphQLError("an id or key is a string that is not empty")
    return value


def _uuid(value: Any) -> str:
    try:
        return str(uuid.UUID(value))
    except (ValueError, TypeError, AttributeError) as error:
        raise GraphQLError(f"{value!r} is not a UUID") from error


def _long(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise GraphQLError(f"{value!r} is not an integer")


SCALARS: dict[object, ScalarDefinition] = {
    Uuid: strawberry.scalar(name="UUID", serialize=str, parse_value=_uuid),
    IdOrKey: strawberry.scalar(name="IdOrKey", serialize=str, parse_value=_id_or_key),
    Timestamp: strawberry.scalar(
        name="Timestamp",
        description="Milliseconds since 1970; written in ISO 8601 it is understood too.",
        serialize=milliseconds,
        parse_value=_moment,
    ),
    Long: strawberry.scalar(name="Long", description="An integer.", serialize=int, parse_value=_long),
}
