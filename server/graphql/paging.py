"""Pages as Adaptive's clients ask for them and read them."""

from collections.abc import Sequence
from enum import Enum

import strawberry

from server.completions import Paging
from server.errors import InvalidRequest

DEFAULT_PAGE, MAX_PAGE = 20, 100


@strawberry.enum
class SortDirection(Enum):
    ASC = "ASC"
    DESC = "DESC"


@strawberry.input
class OrderPair:
    field: str
    order: SortDirection


@strawberry.input
class CursorPageInput:
    """`first` after `after`, or `last` before `before`; `offset` passes over so many of those."""

    first: int | None = None
    after: str | None = None
    before: str | None = None
    last: int | None = None
    offset: int | None = None

    @property
    def size(self) -> int:
        return self.first or self.last or DEFAULT_PAGE

    def paging(self, most: int = MAX_PAGE) -> Paging:
        """Raises InvalidRequest for a page that is none, or of more than `most`."""
        if self.first is not None and self.last is not None:
            raise InvalidRequest("a page has either first or last", param="page.first")
        for name, value, least, top in (
            ("first", self.first, 1, most),
            ("last", self.last, 1, most),
            ("offset", self.offset, 0, _MAX_OFFSET),
        ):
            if value is not None and not least <= value <= top:
                raise InvalidRequest(f"{name} is {least} to {top}", param=f"page.{name}")
        first = self.size if self.last is None else None
        return Paging(first=first, after=self.after, last=self.last, before=self.before, offset=self.offset)


_MAX_OFFSET = 1_000_000


@strawberry.type
class PageInfo:
    has_next_page: bool
    has_previous_page: bool
    start_cursor: str | None
    end_cursor: str | None

    @classmethod
    def of(cls, cursors: Sequence[str], *, has_next: bool, has_previous: bool) -> "PageInfo":
        return cls(
            has_next_page=has_next,
            has_previous_page=has_previous,
            start_cursor=cursors[0] if cursors else None,
            end_cursor=cursors[-1] if cursors else None,
        )
