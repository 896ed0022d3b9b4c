"""Answers that must have begun by a certain time."""

import asyncio

import pytest
from fastapi.responses import Response, StreamingResponse

from server.deadline import Deadline, current_deadline
from server.errors import InvalidRequest, RequestTimeout

SOON, NEVER = 0.1, 9.0


class Answer:
    """Takes `before` until its first token, then `after`; `ended` says how its engine left it."""

    def __init__(self, before=0.0, after=0.0, *, swallows=False) -> None:
        self.before, self.after, self.swallows, self.ended = before, after, swallows, None

    async def __call__(self):
        try:
            await asyncio.sleep(self.before)
            current_deadline.get().begins()
            await asyncio.sleep(self.after)
        except asyncio.CancelledError as error:
            self.ended = "cut"
            if self.swallows:
                raise InvalidRequest("Client disconnected") from error
            raise
        self.ended = "whole"
        return Response("whole")


@pytest.mark.parametrize("first_token", [None, NEVER])
@pytest.mark.parametrize("seconds", [0, NEVER])
async def test_an_answer_in_time_is_answered(seconds, first_token):
    """Whatever limits there are, and when there are none."""
    response = await Deadline(seconds, first_token).within(Answer(0.01, 0.01))
    assert response.body == b"whole"
    assert current_deadline.get() is None


@pytest.mark.parametrize("swallows", [False, True])
async def test_an_answer_that_is_late_is_cut(swallows):
    """Also where the engine makes an error of its own of it, as vLLM does."""
    answer = Answer(0, NEVER, swallows=swallows)
    with pytest.raises(RequestTimeout, match=r"no answer within 0\.1 s"):
        await Deadline(SOON).within(answer)
    assert answer.ended == "cut"


@pytest.mark.parametrize("seconds", [0, NEVER])
async def test_a_first_token_that_is_late_is_refused(seconds):
    """By the field that asked for it."""
    with pytest.raises(RequestTimeout, match="no token within 100 ms") as raised:
        await Deadline(seconds, SOON).within(Answer(NEVER))
    assert raised.value.param == "max_ttft_ms"


async def test_after_the_first_token_there_is_time():
    """The limit for it holds no longer; that of the whole does."""
    assert (await Deadline(0, SOON).within(Answer(0, 3 * SOON))).body == b"whole"
    with pytest.raises(RequestTimeout, match=r"no answer within 0\.3 s"):
        await Deadline(3 * SOON, SOON).within(Answer(0, NEVER))


async def test_no_time_at_all_is_too_little():
    with pytest.raises(RequestTimeout):
        await Deadline(0, 0.0).within(Answer(0.01))


async def test_other_errors_stay_as_they_are():
    async def fails():
        raise InvalidRequest("bad")

    with pytest.raises(InvalidRequest, match="bad"):
        await Deadline(NEVER, NEVER).within(fails)


class Stream:
    def __init__(self, *events) -> None:
        self.events, self.closed = events, False

    async def __call__(self):
        return StreamingResponse(self._run())

    async def _run(self):
        try:
            for event in self.events:
                if isinstance(event, float):
                    await asyncio.sleep(event)
                elif event is None:
                    current_deadline.get().begins()
                else:
                    yield event
        finally:
            self.closed = True


async def read(response):
    return [event async for event in response.body_iterator]


@pytest.mark.parametrize("limits", [(0, None), (NEVER, None), (0, NEVER), (SOON, SOON)])
async def test_a_stream_that_has_begun_goes_on(limits):
    """However long it takes from there, with all its events."""
    stream = Stream("data: 1", 3 * SOON, "data: 2")
    assert await read(await Deadline(*limits).within(stream)) == ["data: 1", "data: 2"]
    assert stream.closed


async def test_a_stream_that_does_not_begin_is_cut():
    """As an error with a status of its own: nothing was sent."""
    for limits in ((SOON, None), (0, SOON), (NEVER, SOON)):
        stream = Stream(NEVER, "data: 1")
        with pytest.raises(RequestTimeout):
            await Deadline(*limits).within(stream)
        assert stream.closed


async def test_comments_are_no_token():
    """They keep a stream alive that must still begin, and are sent once it has; else they are a beginning."""
    with pytest.raises(RequestTimeout):
        await Deadline(0, 3 * SOON).within(Stream(": 1", NEVER, "data: 1"))
    begun = Stream(": 1", None, ": 2", 9 * SOON, "data: 1")
    assert await read(await Deadline(0, 3 * SOON).within(begun)) == [": 1", ": 2", "data: 1"]
    judged = Stream(": 1", 9 * SOON, "data: 1")
    assert await read(await Deadline(3 * SOON).within(judged)) == [": 1", "data: 1"]


async def test_what_is_judged_has_begun_with_its_first_token():
    """Its headers are sent before there is anything to stream."""
    judged = Stream(None, 9 * SOON, "data: 1")
    response = await asyncio.wait_for(Deadline(3 * SOON).within(judged), 6 * SOON)
    assert await read(response) == ["data: 1"]
    assert judged.closed


async def test_a_stream_that_is_left_is_closed():
    """While its next event is awaited."""
    stream = Stream("data: 1", NEVER)
    events = (await Deadline(NEVER).within(stream)).body_iterator
    assert await anext(events) == "data: 1"
    await events.aclose()
    assert stream.closed


async def test_what_a_stream_raises_is_raised():
    """Before its first event, and after it."""

    async def fails(*before):
        for event in before:
            yield event
        raise InvalidRequest("bad")

    async def answer(*before):
        return StreamingResponse(fails(*before))

    with pytest.raises(InvalidRequest, match="bad"):
        await Deadline(NEVER).within(answer)
    response = await Deadline(NEVER).within(lambda: answer("data: 1"))
    with pytest.raises(InvalidRequest, match="bad"):
        await read(response)


async def test_an_empty_stream_is_one():
    assert await read(await Deadline(NEVER, NEVER).within(Stream())) == []


async def test_a_client_that_leaves_ends_what_it_waited_for():
    """Before the first event, too."""
    stream = Stream(NEVER)
    waiting = asyncio.create_task(Deadline(NEVER, NEVER).within(stream))
    await asyncio.sleep(SOON)
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert stream.closed
