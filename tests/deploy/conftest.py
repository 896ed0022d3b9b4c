"""A PostgreSQL server of the tests' own."""

from tests.server.conftest import postgres  # noqa: F401  # a fixture
