"""Inputs that are part of the schema because clients may send them, and mean nothing here."""

from collections.abc import Mapping

from server.errors import InvalidRequest


def refuse(given: Mapping[str, object], why: str) -> None:
    """Raises InvalidRequest for the first of these fields that says something."""
    for name, value in given.items():
        if value is not None:
            raise InvalidRequest(f"{name} cannot take effect here: {why}", param=name)
