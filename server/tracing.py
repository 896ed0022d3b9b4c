"""Spans of a request, for whoever has something to say about a part of it: see `server.otel`.

Nothing here knows OpenTelemetry. Where the server does not trace, no span is open, and all of this does
nothing.
"""

from collections.abc import AsyncGenerator, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from contextvars import ContextVar
from typing import Protocol, TypeVar

Item = TypeVar("Item")
# What stands in an attribute: names, counts and ids, never a text of a request or an answer.
Attributes = Mapping[str, str | bool | int | float | Sequence[str]]


class Span(Protocol):
    """One part of a request. `end` is called once, by whoever made it."""

    @property
    def trace_id(self) -> str:
        """32 hexadecimal digits."""

    def child(self, name: str, attributes: Attributes) -> "Span": ...
    def note(self, attributes: Attributes) -> None: ...
    def fail(self, error: BaseException) -> None:
        """By its class alone: what an error says may quote the request."""

    def headers(self) -> Mapping[str, str]:
        """W3C's, that make a span elsewhere a child of this one."""

    def end(self) -> None: ...


current_span: ContextVar[Span | None] = ContextVar("current_span", default=None)


def trace_id() -> str | None:
    """That of the current request; None where it is not traced."""
    span = current_span.get()
    return None if span is None else span.trace_id


def note(attributes: Attributes) -> None:
    """Say something of the span that is open here."""
    span = current_span.get()
    if span is not None:
        span.note(attributes)


@contextmanager
def spanned(name: str, attributes: Attributes) -> Iterator[None]:
    """A child of the span that is open here, open within."""
    parent = current_span.get()
    if parent is None:
        yield
        return
    span = parent.child(name, attributes)
    token = current_span.set(span)
    try:
        yield
    except BaseException as error:
        span.fail(error)
        raise
    finally:
        current_span.reset(token)
        span.end()


@contextmanager
def begun(name: str, attributes: Attributes) -> Iterator[Span | None]:
    """As `spanned`, but for an error left open: until the end of what is made within, `ending_with` it."""
    parent = current_span.get()
    if parent is None:
        yield None
        return
    span = parent.child(name, attributes)
    token = current_span.set(span)
    try:
        yield span
    except BaseException as error:
        span.fail(error)
        span.end()
        raise
    finally:
        current_span.reset(token)


async def ending_with(stream: AsyncGenerator[Item, None], span: Span) -> AsyncGenerator[Item, None]:
    """`stream`, with whose end the span ends."""
    try:
        async with aclosing(stream):
            async for each in stream:
                yield each
    except BaseException as error:
        if not isinstance(error, GeneratorExit):
            span.fail(error)
        raise
    finally:
        span.end()
