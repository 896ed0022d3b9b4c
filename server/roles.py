"""What somebody may do in a project."""

from enum import StrEnum


class Role(StrEnum):
    """An owner also decides who else may do what; a reader changes nothing and generates nothing."""

    OWNER = "owner"
    MEMBER = "member"
    READER = "read-only"

    def allows(self, needed: "Role") -> bool:
        return _RANKS[self] >= _RANKS[needed]

    def at_most(self, limit: "Role") -> "Role":
        return self if limit.allows(self) else limit


_RANKS = {Role.READER: 0, Role.MEMBER: 1, Role.OWNER: 2}
