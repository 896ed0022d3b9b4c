"""Cursors and pages, as Adaptive's clients ask for them."""

import base64
import binascii
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, NamedTuple

from server.errors import InvalidRequest

DEFAULT_PAGE, MAX_PAGE = 20, 500
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Spot(NamedTuple):
    """Where a completion stands among all."""

    created_at: datetime
    number: int
    choice: int

    @property
    def cursor(self) -> str:
        at = (self.created_at - _EPOCH) // timedelta(microseconds=1)
        return _coded(at, self.number, self.choice)

    @classmethod
    def of(cls, cursor: str, param: str) -> "Spot":
        """Raises InvalidRequest for what is no cursor of a list."""
        at, number, choice = _decoded(cursor, 3, param)
        try:
            return cls(_EPOCH + timedelta(microseconds=at), number, choice)
        except OverflowError as error:
            raise _no_cursor(cursor, param) from error


def place_cursor(place: int) -> str:
    """Of the group at that place in its list."""
    return _coded(place)


def place_of(cursor: str, param: str) -> int:
    """Raises InvalidRequest for what is no cursor of a list of groups."""
    (place,) = _decoded(cursor, 1, param)
    return place


def _coded(*numbers: int) -> str:
    return base64.urlsafe_b64encode(".".join(map(str, numbers)).encode()).decode()


def _decoded(cursor: str, count: int, param: str) -> list[int]:
    try:
        numbers = [int(each) for each in base64.urlsafe_b64decode(cursor.encode()).decode().split(".")]
    except (ValueError, binascii.Error) as error:
        raise _no_cursor(cursor, param) from error
    if len(numbers) != count or any(abs(each) >= 2**63 for each in numbers):
        raise _no_cursor(cursor, param)
    return numbers


def _no_cursor(cursor: str, param: str) -> InvalidRequest:
    return InvalidRequest(f"{cursor!r} is no cursor of this list: send one that it gave", param=param)


@dataclass(frozen=True, slots=True)
class Paging:
    """`first` after `after`, or `last` before `before`; `offset` passes over so many of those.

    Without a size it is DEFAULT_PAGE.
    """

    first: int | None = None
    after: str | None = None
    last: int | None = None
    before: str | None = None
    offset: int | None = None

    @property
    def backwards(self) -> bool:
        return self.last is not None or (self.first is None and self.before is not None)

    @property
    def cursor(self) -> tuple[str, str] | None:
        """The one to begin at, and the name of its field."""
        if self.backwards:
            return None if self.before is None else (self.before, "before")
        return None if self.after is None else (self.after, "after")

    @property
    def size(self) -> int:
        asked = self.last if self.backwards else self.first
        return DEFAULT_PAGE if asked is None else asked

    def check(self, most: int = MAX_PAGE) -> None:
        """Raises InvalidRequest."""
        if self.first is not None and self.last is not None:
            raise InvalidRequest("`first` and `last` exclude one another", param="last")
        if self.backwards and self.after is not None:
            raise InvalidRequest("`after` goes with `first`; `last` goes with `before`", param="after")
        if not self.backwards and self.before is not None:
            raise InvalidRequest("`before` goes with `last`; `first` goes with `after`", param="before")
        for name in ("first", "last"):
            size = getattr(self, name)
            if size is not None and not 0 <= size <= most:
                raise InvalidRequest(f"a page has 0 to {most} items", param=name)
        if self.offset is not None and not 0 <= self.offset < 2**63:
            raise InvalidRequest("an offset is at least 0", param="offset")


FIRST_PAGE: Final = Paging()


def bounds(paging: Paging, total: int) -> tuple[int, int]:
    """The first place of a page, and that after its last, in a list of `total` counted by their places.

    Raises InvalidRequest for a cursor that is none.
    """
    cursor = None if paging.cursor is None else place_of(*paging.cursor)
    skipped = paging.offset or 0
    if paging.backwards:
        end = max(0, min(total, total if cursor is None else cursor) - skipped)
        return max(0, end - paging.size), end
    first = min(total, max(0, 0 if cursor is None else cursor + 1) + skipped)
    return first, min(total, first + paging.size)
