"""vLLM's media connector, held to listed hosts: against a web server of the test's own, without an engine."""

import asyncio
import base64
import io
import struct
import zlib
from contextlib import asynccontextmanager
from dataclasses import replace
from types import SimpleNamespace

import pytest
from aiohttp import web
from PIL import Image
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY
from vllm.renderers.chat_utils import AsyncMultiModalContentParser

from server import __main__
from server.errors import InvalidRequest
from server.image_files import MAX_IMAGE_BYTES
from server.media_hosts import MediaHosts
from server.vllm_errors import MediaFailed, as_steersman
from server.vllm_media import CONNECTOR, ListedConnection, ListedMedia, modalities
from server.vllm_responses import SteeredResponses, respond
from server.vllm_wire import ChatRequest
from tests.server.resolvers import Answering
from tests.server.vllm_policy_world import CHAT, Engine, always, opened, raw_request, serving


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int = 1, height: int = 1) -> bytes:
    """A red picture, by the specification of the format."""
    rows = zlib.compress((b"\0" + b"\xff\0\0" * width) * height)
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


class Site:
    """A web server on the loopback address; `asked` are the paths that were asked for."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self.port = 0

    def url(self, path: str, host: str = "127.0.0.1") -> str:
        return f"http://{host}:{self.port}{path}"

    async def answer(self, request: web.Request) -> web.Response:
        self.asked.append(request.path)
        if request.path == "/away":
            raise web.HTTPFound(self.url("/red.png"))
        if request.path == "/gone":
            raise web.HTTPNotFound
        if request.path == "/large":
            return web.Response(body=png() + bytes(MAX_IMAGE_BYTES), content_type="image/png")
        if request.path == "/text":
            return web.Response(text="no picture")
        return web.Response(body=png(), content_type="image/png")


@pytest.fixture
async def site():
    made = Site()
    runner = web.ServerRunner(web.Server(made.answer))
    await runner.setup()
    listener = web.TCPSite(runner, "127.0.0.1", 0)
    await listener.start()
    made.port = listener._server.sockets[0].getsockname()[1]
    yield made
    await runner.cleanup()


@asynccontextmanager
async def fetching(*listed: str, resolver=None, **options):
    """A function that fetches a picture as vLLM's chat routes do."""
    connection = ListedConnection(MediaHosts.of(listed), resolver)
    media = ListedMedia(connection=connection, allowed_media_domains=list(listed), **options)
    yield media.fetch_image_async
    if connection._client is not None:
        await connection._client.close()


async def refused(site, url, *listed, says=None, resolver=None, **options):
    """The paths that were asked for until the refusal that must come."""
    async with fetching(*listed, resolver=resolver, **options) as fetch:
        with pytest.raises(MediaFailed, match=says):
            await fetch(url)
    return site.asked


async def test_a_listed_address_is_fetched(site):
    """The operator's own word, private or not."""
    async with fetching("127.0.0.1") as fetch:
        image = await fetch(site.url("/red.png"))
    assert image.media.getpixel((0, 0)) == (255, 0, 0)
    assert site.asked == ["/red.png"]


async def test_without_a_list_nothing_is_fetched(site):
    """Which is the default, and not vLLM's."""
    assert await refused(site, site.url("/red.png"), says="allowed-media-domains") == []


@pytest.mark.parametrize("host", ["2130706433", "0x7f000001", "127.1", "localhost", "[::ffff:127.0.0.1]"])
async def test_another_spelling_of_the_address_is_not_the_address(site, host):
    """Decimal, hexadecimal, short, mapped into IPv6: none is on the list."""
    assert await refused(site, site.url("/red.png", host), "127.0.0.1") == []


@pytest.mark.parametrize("host", ["2130706433", "127.1"])
async def test_another_spelling_is_no_host_to_list(site, host):
    """The client itself refuses it."""
    assert await refused(site, site.url("/red.png", host), host) == []


async def test_a_listed_name_of_a_private_address_is_refused(site):
    """Whoever answers for the name does not decide about the network behind the server."""
    private = Answering(["127.0.0.1"])
    url = site.url("/red.png", "media.example")
    assert await refused(site, url, "media.example", says="not public", resolver=private) == []


async def test_a_name_that_changes_its_address_is_looked_up_once(site):
    """The address that is asked is the one that was judged: of each fetch there is one look-up."""
    rebound = Answering(["127.0.0.1"], ["10.0.0.1"])
    async with fetching("media.example", "127.0.0.1", resolver=rebound) as fetch:
        url = site.url("/red.png", "media.example")
        await fetch(url)
        assert (len(rebound.answers), site.asked) == (1, ["/red.png"])


async def test_redirects_are_not_followed(site):
    """Not even to the same host."""
    asked = await refused(site, site.url("/away"), "127.0.0.1", says="redirects")
    assert asked == ["/away"]


async def test_a_proxy_of_the_environment_is_not_asked(site, monkeypatch):
    """It would look names up by itself."""
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    async with fetching("127.0.0.1") as fetch:
        await fetch(site.url("/red.png"))
    assert site.asked == ["/red.png"]


@pytest.mark.parametrize(("path", "says"), [("/text", "one of JPEG, PNG, WebP, GIF"), ("/gone", "404")])
async def test_what_is_no_picture_is_the_clients_error(site, path, says):
    """Which says what came instead."""
    async with fetching("127.0.0.1") as fetch:
        with pytest.raises(MediaFailed, match=says):
            await fetch(site.url(path))


async def test_a_host_that_does_not_answer_is_the_clients_error(site, monkeypatch):
    """Told once vLLM's retries are over."""
    monkeypatch.setenv("VLLM_MEDIA_FETCH_MAX_RETRIES", "1")
    nobody = "http://127.0.0.1:9/red.png"
    assert await refused(site, nobody, "127.0.0.1", says="could not be loaded") == []


async def test_data_urls_need_no_list(site):
    """What is sent along is fetched from nowhere."""
    url = "data:image/png;base64," + base64.b64encode(png(2, 3)).decode()
    async with fetching() as fetch:
        image = await fetch(url)
    assert (image.media.size, site.asked) == ((2, 3), [])


@pytest.mark.parametrize(
    "url", ["data:image/png,plain", "data:image/png;base64", "DATA:,", "data:image/png;base64,AAAA"]
)
async def test_other_data_urls_are_the_clients_error(site, url):
    """Those not in base64 among them, which vLLM calls not implemented."""
    async with fetching() as fetch:
        with pytest.raises(MediaFailed, match=r"could not be loaded|none of them"):
            await fetch(url)


def data_url(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


async def test_an_image_is_at_most_so_large():
    """As data, refused before it is decoded; a byte less is read as far as it goes."""
    async with fetching() as fetch:
        with pytest.raises(MediaFailed, match="at most 10 MiB large; this one has 10485761 bytes"):
            await fetch(data_url(png() + bytes(MAX_IMAGE_BYTES + 1 - len(png()))))
        full = await fetch(data_url(png() + bytes(MAX_IMAGE_BYTES - len(png()))))
    assert full.media.size == (1, 1)


async def test_an_image_that_is_fetched_is_cut_off(site):
    """Where it grows too large; the limit is told."""
    async with fetching("127.0.0.1") as fetch:
        with pytest.raises(MediaFailed, match="larger than 10 MiB"):
            await fetch(site.url("/large"))


async def test_a_local_file_is_held_to_the_size(tmp_path):
    """Before it is read."""
    path = tmp_path / "large.png"
    path.write_bytes(png())
    with path.open("r+b") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    async with fetching(allowed_local_media_path=str(tmp_path)) as fetch:
        with pytest.raises(MediaFailed, match="at most 10 MiB"):
            await fetch(path.as_uri())


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
async def test_these_formats_are_read(form):
    """Whatever the URL calls them."""
    made = io.BytesIO()
    Image.new("RGB", (3, 2), "blue").save(made, form)
    async with fetching() as fetch:
        assert (await fetch(data_url(made.getvalue()))).media.size == (3, 2)


@pytest.mark.parametrize("form", ["BMP", "TIFF", "PPM", "ICO"])
async def test_other_formats_are_refused(form):
    """With those that are read."""
    made = io.BytesIO()
    Image.new("RGB", (32, 32), "blue").save(made, form)
    async with fetching() as fetch:
        with pytest.raises(MediaFailed, match="one of JPEG, PNG, WebP, GIF"):
            await fetch(data_url(made.getvalue()))


async def test_files_of_the_server_stay_there(site, tmp_path):
    """Unless a folder of them is opened, and then those within it."""
    inside, outside = tmp_path / "open" / "red.png", tmp_path / "red.png"
    inside.parent.mkdir()
    for file in (inside, outside):
        file.write_bytes(png())
    await refused(site, outside.as_uri(), "127.0.0.1", says="neither")
    async with fetching(allowed_local_media_path=str(inside.parent)) as fetch:
        assert (await fetch(inside.as_uri())).media.size == (1, 1)
        with pytest.raises(MediaFailed, match="subpath"):
            await fetch(outside.as_uri())


async def test_a_route_that_would_block_fetches_nothing(site):
    """vLLM's other client, for code without an event loop, follows its own rules: it is refused."""
    media = ListedMedia(allowed_media_domains=["127.0.0.1"])
    with pytest.raises(MediaFailed, match="not fetched"):
        await asyncio.to_thread(media.fetch_image, site.url("/red.png"))
    assert site.asked == []


def test_the_server_names_this_connector():
    """In the environment from which vLLM takes the name, and in the registry where it looks it up."""
    assert __main__._ENVIRONMENT["VLLM_MEDIA_CONNECTOR"] == CONNECTOR
    assert isinstance(MEDIA_CONNECTOR_REGISTRY.load(CONNECTOR), ListedMedia)


def test_what_cannot_be_had_is_the_clients_error():
    """400 of its own kind, whatever route it was asked on; vLLM's own routes have its status too."""
    error = as_steersman(MediaFailed("gone"))
    assert (error.status, error.message, error.reason) == (400, "gone", "invalid_file_input")
    assert create_error_response(MediaFailed("gone")).error.code == 400


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
async def test_vllms_own_parser_goes_through_it(site, kind, monkeypatch):
    """Which every chat route has parse its messages: without a list, nothing is asked for."""
    monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", CONNECTOR)
    items = []
    tracker = SimpleNamespace(
        media_io_kwargs=None,
        allowed_local_media_path="",
        allowed_media_domains=None,
        video_processor_name=None,
        add=lambda modality, item: items.append(item),
    )
    parser = AsyncMultiModalContentParser(tracker)
    getattr(parser, f"parse_{kind}")(site.url("/red.png"))
    with pytest.raises(MediaFailed, match="allowed-media-domains"):
        await items[0]()
    assert site.asked == []


class Renderer:
    def __init__(self, limits: dict[str, int] | None) -> None:
        self.mm_processor = None
        if limits is not None:
            info = type("Info", (), {"allowed_mm_limits": limits})()
            self.mm_processor = type("Processor", (), {"info": info})()


@pytest.mark.parametrize(
    ("limits", "taken"),
    [
        (None, set()),
        ({"image": 4, "video": 0}, {"image"}),
        ({"vision_chunk": 2}, {"image", "video"}),
        ({"audio": 1}, {"audio"}),
    ],
)
def test_what_a_model_takes(limits, taken):
    """What vLLM lets a prompt have one of; a model of text takes nothing beside it."""
    engine = type("Engine", (), {"renderer": Renderer(limits)})()
    assert modalities(engine) == taken


# What no model takes


IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,iVBORw0KGgo="}}
LOOK = [
    {"role": "user", "content": "Hello."},
    {"role": "user", "content": [{"type": "text", "text": "?"}, IMAGE]},
]


@pytest.mark.parametrize(
    "more", [{}, {"stream": True}, {"n": 2}, {"policy": {"sampling": {"method": "greedy"}}}]
)
@pytest.mark.filterwarnings("ignore:max_tokens is deprecated")
async def test_a_part_that_the_model_does_not_take_is_named(more):
    """However the request is answered; the engine is not asked."""
    engine = Engine(always("A pear."))
    async with opened(engine) as client:
        response = await client.post(CHAT, json={"messages": LOOK, "max_tokens": 4, **more})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "messages.1.content.1"), response.text
    assert error["message"].endswith("takes no image, only text")
    assert engine.requests == []


async def test_responses_name_it_too():
    """Where it stands in their input, messages and outputs of functions alike."""
    seen = {"type": "input_image", "image_url": "data:,", "detail": "auto"}
    message = {"role": "user", "content": [{"type": "input_text", "text": "?"}, seen]}
    output = {"type": "function_call_output", "call_id": "c", "output": [seen]}
    for item, path in ((message, "input.1.content.1"), (output, "input.1.output.0")):
        request = SteeredResponses.model_validate({"input": [{"role": "user", "content": "Hello."}, item]})
        served = serving(Engine(always("A pear.")))
        state = SimpleNamespace(steersman=SimpleNamespace(serving=served), openai_serving_responses=object())
        principal = SimpleNamespace(selected_model=None, account_id="me")
        raw = SimpleNamespace(app=SimpleNamespace(state=state), state=SimpleNamespace(principal=principal))
        with pytest.raises(InvalidRequest, match="takes no image, only text") as caught:
            await respond(request, raw)
        assert caught.value.param == path


async def test_a_part_that_cannot_be_had_is_named():
    """Of several the one that failed."""

    class Blind(Engine):
        async def create_chat_completion(self, request, raw):
            raise MediaFailed("it is gone", "http://b/")

    parts = [{"type": "image_url", "image_url": {"url": f"http://{host}/"}} for host in "ab"]
    served = serving(Blind(always("")))
    served = replace(served, models=replace(served.models, modalities=frozenset({"image"})))
    request = ChatRequest.model_validate({"messages": [{"role": "user", "content": parts}]})
    with pytest.raises(InvalidRequest, match="it is gone") as caught:
        await served.decode(request, raw_request())
    assert (caught.value.param, caught.value.reason) == ("messages.0.content.1", "invalid_file_input")


async def test_what_fails_is_told_with_its_url():
    """By which its part is found."""
    async with fetching() as fetch:
        with pytest.raises(MediaFailed) as caught:
            await fetch("http://elsewhere/red.png")
    assert caught.value.url == "http://elsewhere/red.png"
