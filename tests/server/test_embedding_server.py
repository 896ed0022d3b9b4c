"""The client of the server that embeds, against one of the tests' own that fails in every way it can."""

import asyncio
from contextlib import asynccontextmanager

import pytest
from aiohttp import web

from server.embedding_server import EmbeddingServer
from server.embeddings_wire import Asked, Encoding
from server.errors import InvalidRequest, NotFound, PayloadTooLarge, Unavailable
from server.settings import Settings
from tests.conftest import free_port
from tests.server.embedding_world import NAMES, Upstream, answering, packed, until, upstream, vector

ASKED = Asked(["a", "b"], "embedder", Encoding.FLOAT)


@asynccontextmanager
async def world(**options):
    async with upstream() as behind:
        server = EmbeddingServer(behind.url, **options)
        try:
            yield server, behind
        finally:
            await server.close()


@pytest.fixture
async def opened():
    async with world() as both:
        yield both


@pytest.mark.parametrize("always_floats", [False, True])
@pytest.mark.parametrize("encoding", Encoding)
async def test_texts_are_embedded_in_their_order(opened, encoding, always_floats):
    """In the encoding asked for, also where the server knows one alone."""
    server, behind = opened
    behind.always_floats = always_floats
    embedded = await server.embed(Asked(["a", "b"], "embedder", encoding))
    expected = [vector("a"), vector("b")]
    assert embedded.vectors == (expected if encoding is Encoding.FLOAT else [packed(one) for one in expected])
    assert embedded.prompt_tokens == 6


async def test_what_is_asked_is_passed_on(opened):
    """All of it, and nothing that was not asked."""
    server, behind = opened
    await server.embed(Asked([[1, 2]], "org/other", Encoding.BASE64, dimensions=4, user="u"))
    await server.embed(ASKED)
    full = {
        "model": "org/other",
        "input": [[1, 2]],
        "encoding_format": "base64",
        "dimensions": 4,
        "user": "u",
    }
    assert behind.asked == [full, {"model": "embedder", "input": ["a", "b"], "encoding_format": "float"}]
    assert "Authorization" not in behind.headers[0]


async def test_its_key_is_sent():
    """As a Bearer token."""
    async with world(key="secret") as (server, behind):
        await server.embed(ASKED)
        assert behind.headers[0]["Authorization"] == "Bearer secret"


async def test_names_are_asked_once(opened):
    """For a while; none and "default" are the first."""
    server, behind = opened
    assert [await server.resolve(name) for name in (None, "default", *NAMES)] == [NAMES[0]] * 2 + [*NAMES]
    assert behind.lists == 1
    with pytest.raises(NotFound, match=r"'gpt' does not embed here; .*embedder, org/other"):
        await server.resolve("gpt")


async def test_a_named_model_needs_no_list():
    """For servers that have none."""
    async with world(model="mine") as (server, behind):
        assert (await server.resolve(None), await server.resolve("mine")) == ("mine", "mine")
        assert behind.lists == 0


@pytest.mark.parametrize("body", [b"no", b"[]", b'{"data": [{}]}', b'{"data": []}'])
async def test_a_list_that_cannot_be_read_is_unavailable(opened, body):
    """And asked for again the next time."""
    server, behind = opened
    behind.listing = answering(200, body)
    with pytest.raises(Unavailable, match="list"):
        await server.resolve(None)
    behind.listing = None
    assert await server.resolve(None) == NAMES[0]


async def test_a_server_that_is_not_there_is_unavailable():
    """With when to try again."""
    server = EmbeddingServer(f"http://127.0.0.1:{free_port()}")
    with pytest.raises(Unavailable, match="does not answer") as caught:
        await server.embed(ASKED)
    assert caught.value.retry_after == 5
    await server.close()


async def test_a_server_that_takes_too_long_is_unavailable():
    """Its connection is closed, so that it may stop."""
    async with world(seconds=0.2) as (server, behind):
        behind.answer = hanging
        with pytest.raises(Unavailable, match=r"longer than 0\.2 s") as caught:
            await server.embed(ASKED)
        assert caught.value.retry_after == 5
        await until(lambda: behind.left == 1)
        assert len(behind.asked) == 1  # not asked again: it has enough to do


async def test_a_client_that_leaves_takes_its_request_along(opened):
    """The embedding server sees the connection close; its slot is free again."""
    server, behind = opened
    behind.answer = hanging
    task = asyncio.create_task(server.embed(ASKED))
    await until(lambda: behind.open == 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: behind.left == 1)
    behind.answer = None
    assert (await server.embed(ASKED)).vectors


async def test_a_connection_lost_before_the_answer_is_tried_once_more(opened):
    """Embedding twice harms nobody; lost twice it is unavailable."""
    server, behind = opened

    async def dropping(request):
        behind.answer = None
        request.transport.abort()
        return web.Response()

    behind.answer = dropping
    assert (await server.embed(ASKED)).vectors == [vector("a"), vector("b")]
    assert len(behind.asked) == 2

    async def always(request):
        request.transport.abort()
        return web.Response()

    behind.answer = always
    with pytest.raises(Unavailable, match="does not answer"):
        await server.embed(ASKED)
    assert len(behind.asked) == 4


async def test_an_answer_that_breaks_off_is_unavailable(opened):
    """Half an answer is none."""
    server, behind = opened

    async def half(request):
        response = web.StreamResponse(headers={"content-length": "1000"})
        await response.prepare(request)
        await response.write(b'{"data": [')
        request.transport.abort()
        return response

    behind.answer = half
    with pytest.raises(Unavailable, match="does not answer"):
        await server.embed(ASKED)


@pytest.mark.parametrize(("status", "retry_after"), [(500, 5), (502, 5), (503, 5), (429, 5), (418, 5)])
async def test_what_fails_there_is_unavailable_here(opened, status, retry_after):
    """In its words; it is not asked again."""
    server, behind = opened
    behind.answer = answering(status, {"error": {"message": "too much"}})
    with pytest.raises(Unavailable, match=f"{status}: too much") as caught:
        await server.embed(ASKED)
    assert (caught.value.retry_after, len(behind.asked)) == (retry_after, 1)


@pytest.mark.parametrize(("given", "seconds"), [("7", 7), ("99999", 3600), ("soon", 5), ("-1", 5)])
async def test_it_may_say_when_to_try_again(opened, given, seconds):
    """In seconds, within reason."""
    server, behind = opened
    behind.answer = answering(503, {}, headers={"retry-after": given})
    with pytest.raises(Unavailable) as caught:
        await server.embed(ASKED)
    assert caught.value.retry_after == seconds


@pytest.mark.parametrize(
    ("status", "body", "error"),
    [
        (
            400,
            {"error": {"message": "too long", "param": "input"}},
            InvalidRequest("too long", param="input"),
        ),
        (422, {"error": "batch size", "error_type": "Validation"}, InvalidRequest("batch size")),
        (400, {"error": {"message": "m", "param": "input_tokens"}}, InvalidRequest("m")),
        (400, {"detail": "bad"}, InvalidRequest("bad")),
        (400, b"<html>", InvalidRequest("<html>")),
        (400, b"", InvalidRequest("no message")),
        (400, ["x"], InvalidRequest("x")),
        (404, {"error": {"message": "no model", "param": 5}}, NotFound("no model")),
        (413, {"message": "large"}, PayloadTooLarge("large")),
        (401, {"error": {"message": "who?"}}, Unavailable("refuses this server: who")),
        (403, {"error": {"message": "no"}}, Unavailable("refuses this server: no")),
    ],
)
async def test_what_it_refuses_is_told(opened, status, body, error):
    """In its words: the client's mistakes as such, ours as none of the client's."""
    server, behind = opened
    behind.answer = answering(status, body)
    with pytest.raises(type(error), match=error.message) as caught:
        await server.embed(ASKED)
    assert caught.value.param == error.param


async def test_redirects_are_not_followed(opened):
    """They could lead anywhere, with the key."""
    server, behind = opened
    behind.answer = answering(307, {}, headers={"location": behind.url + "/v1/embeddings"})
    with pytest.raises(Unavailable, match="redirects"):
        await server.embed(ASKED)
    assert len(behind.asked) == 1


GOOD = {"index": 0, "embedding": [1.0, 2.0]}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"no JSON",
        [],
        {},
        {"data": None},
        {"data": [GOOD]},
        {"data": [GOOD, GOOD]},
        {"data": [GOOD, {"index": 2, "embedding": [1.0]}]},
        {"data": [GOOD, {"index": 1}]},
        {"data": [GOOD, {"index": 1, "embedding": []}]},
        {"data": [GOOD, {"index": 1, "embedding": ["x"]}]},
        {"data": [GOOD, {"index": 1, "embedding": [1e60]}]},
        {"data": [GOOD, {"index": 1, "embedding": "????"}]},
        {"data": [GOOD, {"index": 1, "embedding": "AAA="}]},
        {"data": [GOOD, {"index": 1, "embedding": packed([float("nan")])}]},
        {"data": [GOOD, {**GOOD, "index": 1}], "usage": {"prompt_tokens": -1}},
        b'{"data": [{"index": 0, "embedding": [NaN]}, {"index": 1, "embedding": [1]}]}',
    ],
)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
async def test_an_answer_that_is_none_is_unavailable(opened, body):
    """Wrong vectors are worse than none."""
    server, behind = opened
    behind.answer = answering(200, body)
    with pytest.raises(Unavailable, match="cannot be used"):
        await server.embed(ASKED)


async def test_dimensions_that_it_ignores_are_refused(opened):
    """A vector of another length is not what was asked."""
    server, _ = opened
    with pytest.raises(InvalidRequest, match="have 4 dimensions, not 2") as caught:
        await server.embed(Asked(["a"], "embedder", Encoding.FLOAT, dimensions=2))
    assert caught.value.param == "dimensions"


async def test_an_answer_without_usage_is_one():
    """Some servers do not count."""
    async with world() as (server, behind):
        behind.answer = answering(200, {"data": [GOOD, {**GOOD, "index": 1}]})
        assert (await server.embed(ASKED)).prompt_tokens == 0


async def test_an_answer_too_large_is_not_read():
    """However long it goes on."""
    async with world(max_answer_bytes=10_000) as (server, behind):
        behind.answer = answering(200, b"x" * 10_001)
        with pytest.raises(Unavailable, match="larger than 10000 bytes"):
            await server.embed(ASKED)


async def test_it_is_asked_no_more_at_once_than_it_may_be():
    """The others wait their turn; beyond those that may wait they are told to come again."""
    async with world(at_once=2) as (server, behind):
        gate = asyncio.Event()
        usual = behind.answer

        async def waiting(request):
            await gate.wait()
            behind.answer = usual
            return web.json_response({"data": [GOOD, {**GOOD, "index": 1}]})

        behind.answer = waiting
        tasks = [asyncio.create_task(server.embed(ASKED)) for _ in range(10)]
        await until(lambda: behind.open == 2)
        with pytest.raises(Unavailable, match="too many") as caught:
            await server.embed(ASKED)
        assert caught.value.retry_after == 1
        gate.set()
        assert len(await asyncio.gather(*tasks)) == 10
        assert behind.most == 2


def test_without_a_url_there_is_none():
    """With one, what the settings say holds."""
    assert EmbeddingServer.of(Settings.read(environ={})) is None
    made = EmbeddingServer.of(Settings.read(environ={"STEERSMAN_EMBEDDINGS_URL": "http://embed:8000/v1/"}))
    assert made is not None
    assert made._base == "http://embed:8000"


async def hanging(request):
    await asyncio.sleep(60)
    return web.Response()


def test_the_world_is_told_apart():
    """The vectors of two texts differ, or the tests above say nothing."""
    assert vector("a") != vector("b")
    assert Upstream().asked == []
