"""Times, ids and integers as they go over the wire."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from graphql import GraphQLError

from server.graphql.scalars import SCALARS, IdOrKey, Long, Timestamp, Uuid

NOON = datetime(2026, 1, 31, 12, 0, 0, 250_000, tzinfo=UTC)


def read(scalar, value):
    return SCALARS[scalar].parse_value(value)


def test_a_time_is_milliseconds_since_1970():
    """Beyond the 32 bits of GraphQL's own integers, and the same in every zone."""
    write = SCALARS[Timestamp].serialize
    assert write(NOON) == 1769860800250
    assert write(NOON.astimezone(timezone(timedelta(hours=5)))) == 1769860800250
    assert read(Timestamp, 1769860800250) == NOON


@pytest.mark.parametrize("written", ["2026-01-31T12:00:00.250Z", "2026-01-31T13:00:00.250+01:00"])
def test_a_time_may_be_written_out(written):
    assert read(Timestamp, written) == NOON


def test_a_time_without_a_zone_is_utc():
    assert read(Timestamp, "2026-01-31T12:00:00.250") == NOON


@pytest.mark.parametrize(
    ("scalar", "value"),
    [
        (Timestamp, "yesterday"),
        (Timestamp, 1.5),
        (Timestamp, True),
        (Timestamp, 10**30),
        (Uuid, "chatcmpl-1"),
        (Uuid, 7),
        (IdOrKey, ""),
        (IdOrKey, 7),
        (Long, 1.5),
        (Long, True),
    ],
)
def test_what_is_none_is_refused(scalar, value):
    with pytest.raises(GraphQLError):
        read(scalar, value)


def test_ids_have_one_form():
    """Stores look them up as text."""
    assert read(Uuid, "0F8FAD5B-D9CB-469F-A165-70867728950E") == "0f8fad5b-d9cb-469f-a165-70867728950e"
