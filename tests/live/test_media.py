"""Images and sounds on every chat route, before models of the tests' own; what these cannot take is named."""

import base64
import io
import math
import struct
import threading
import wave
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx
import pytest
from PIL import Image

from server.image_files import MAX_IMAGE_BYTES
from tests.conftest import start_server, stop
from tests.live.tiny_media import make_hearing, make_seeing

pytestmark = pytest.mark.engine

CHAT, OXEN, ADAPTIVE = "/v1/chat/completions", "/api/ai/chat/completions", "/api/v1/chat/completions"
RESPONSES = "/v1/responses"
FLAGS = ["--dtype", "float32", "--max-num-seqs", "8", "--kv-cache-memory-bytes", str(64 * 1024**2)]
FLAGS += ["--max-model-len", "512", "--allowed-media-domains", "127.0.0.1"]


@pytest.fixture(scope="module")
def live(model_path, tmp_path_factory):
    """A model that sees; links to the loopback address are followed."""
    home = tmp_path_factory.mktemp("seeing")
    make_seeing(model_path, home / "model")
    server = start_server(home, str(home / "model"), "--served-model-name", "seeing", *FLAGS)
    yield server
    stop(server.process)


@pytest.fixture(scope="module")
def hearing(model_path, tmp_path_factory):
    """A client of a server whose model hears."""
    pytest.importorskip("soundfile", reason="pip install soundfile")
    home = tmp_path_factory.mktemp("hearing")
    make_hearing(model_path, home / "model")
    server = start_server(
        home, str(home / "model"), "--served-model-name", "hearing", "--disable-steering", *FLAGS
    )
    with server.client() as http:
        yield http
    stop(server.process)


@pytest.fixture(scope="module")
def client(live):
    with live.client() as http:
        yield http


def file(color: str, form: str = "PNG") -> bytes:
    made = io.BytesIO()
    Image.new("RGB", (20, 30), color).save(made, form)
    return made.getvalue()


def data_url(color: str, form: str = "PNG") -> str:
    return f"data:image/{form.lower()};base64,{base64.b64encode(file(color, form)).decode()}"


class Pictures(BaseHTTPRequestHandler):
    """`/red.png` and the like; `/large.png` never ends in time."""

    def do_GET(self):
        name = self.path.strip("/").partition(".")[0]
        body = b"\x89PNG\r\n\x1a\n" + bytes(MAX_IMAGE_BYTES) if name == "large" else file(name)
        self.send_response(200)
        self.send_header("content-type", "image/png")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        try:
            self.wfile.write(body)
        except ConnectionError:  # too large, and not read to its end
            assert name == "large"

    def log_message(self, *said):
        pass


@pytest.fixture(scope="module")
def site():
    with ThreadingHTTPServer(("127.0.0.1", 0), Pictures) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


def body(part, **more):
    """A question about `part`, to be answered greedily."""
    content = [{"type": "text", "text": "What is this?"}, part]
    asked = {"model": "seeing", "messages": [{"role": "user", "content": content}]}
    return {**asked, "max_tokens": 3, "temperature": 0, "ignore_eos": True, "logprobs": True, **more}


def image(url):
    return {"type": "image_url", "image_url": url if isinstance(url, dict) else {"url": url}}


def said(client, part, path=CHAT, **more):
    """What was answered, as tokens and log-probabilities."""
    response = client.post(path, json=body(part, **more))
    assert response.status_code == 200, response.text
    (choice,) = response.json()["choices"]
    return {each["token"]: each["logprob"] for each in choice["logprobs"]["content"]}


def refused(client, part, path=CHAT, **more):
    response = client.post(path, json=body(part, **more))
    assert response.status_code == 400, response.text
    return response.json()["error"]


def test_the_picture_decides_the_answer(client):
    """Two pictures have two answers; the same one, the same."""
    red, blue = said(client, image(data_url("red"))), said(client, image(data_url("blue")))
    assert said(client, image(data_url("red"))) == pytest.approx(red, abs=1e-5)
    assert blue != pytest.approx(red, abs=1e-3)


@pytest.mark.parametrize("path", [CHAT, OXEN])
def test_a_link_is_the_same_as_the_data(client, site, path):
    """Fetched from a listed host, the picture is the one that was sent along elsewhere."""
    for color in ("red", "blue"):
        linked = said(client, image(f"{site}/{color}.png"), path)
        assert linked == pytest.approx(said(client, image(data_url(color))), abs=1e-5)


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "GIF"])
def test_every_format_is_read(client, form):
    """Plain red is nearly the same in each, and not blue."""
    red, blue = said(client, image(data_url("red"))), said(client, image(data_url("blue")))
    seen = said(client, image(data_url("red", form)))
    assert seen == pytest.approx(red, abs=2e-3)
    assert seen != pytest.approx(blue, abs=2e-3)


def test_oxen_takes_the_link_alone(client):
    """As a string, without the object around it."""
    flat = {"type": "image_url", "image_url": data_url("red")}
    assert said(client, flat, OXEN) == pytest.approx(said(client, image(data_url("red"))), abs=1e-5)


def test_adaptive_takes_pictures(client):
    """As its SDK sends them: the link alone."""
    texts = []
    for color in ("red", "blue", "red"):
        part = {"type": "image_url", "image_url": data_url(color)}
        content = [{"type": "text", "text": "What is this?"}, part]
        asked = {"model": "default/seeing", "messages": [{"role": "user", "content": content}]}
        response = client.post(ADAPTIVE, json={**asked, "max_tokens": 6, "temperature": 0})
        assert response.status_code == 200, response.text
        texts.append(response.json()["choices"][0]["message"]["content"])
    assert texts[0] == texts[2] != texts[1]


def test_a_stream_sees_too(client):
    """Its first token has the same log-probability."""
    whole = said(client, image(data_url("blue")), max_tokens=1)
    (token,) = whole
    with client.stream("POST", CHAT, json=body(image(data_url("blue")), stream=True, max_tokens=1)) as answer:
        text = answer.read().decode()
    assert answer.status_code == 200
    assert f"{token!r}"[1:-1] in text


def test_responses_see(client):
    """As `input_image`; two pictures, two texts."""

    def text(color):
        parts = [{"type": "input_text", "text": "?"}, {"type": "input_image", "image_url": data_url(color)}]
        asked = {"model": "seeing", "input": [{"role": "user", "content": parts}], "temperature": 0}
        response = client.post(RESPONSES, json={**asked, "max_output_tokens": 6})
        assert response.status_code == 200, response.text
        return response.json()["output"][0]["content"][0]["text"]

    assert text("red") == text("red") != text("blue")


def test_policies_see(client):
    """A request with a policy is answered by the same picture."""
    policy = {"sampling": {"method": "greedy"}}
    seen = said(client, image(data_url("blue")), policy=policy)
    assert seen == pytest.approx(said(client, image(data_url("blue"))), abs=1e-5)


OTHERS = [
    {"type": "video_url", "video_url": {"url": "data:video/mp4;base64,AAAA"}},
    {"type": "audio_url", "audio_url": {"url": "data:audio/wav;base64,AAAA"}},
]
HEARD = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}


@pytest.mark.parametrize(
    ("path", "part"), [(path, part) for path in (CHAT, OXEN) for part in OTHERS] + [(CHAT, HEARD)]
)
def test_what_the_model_cannot_take_is_named(client, path, part):
    """By its place in the request, with what it takes instead."""
    error = refused(client, part, path)
    assert error["param"] == "messages.0.content.1"
    assert error["message"].endswith("only text, image")


@pytest.mark.parametrize("path", [CHAT, OXEN])
def test_a_picture_is_at_most_so_large(client, site, path):
    """Sent along or fetched: told with the size that would do."""
    sent = "data:image/png;base64," + base64.b64encode(bytes(MAX_IMAGE_BYTES + 1)).decode()
    for url in (sent, f"{site}/large.png"):
        error = refused(client, image(url), path)
        assert (error["code"], error["param"]) == ("invalid_file_input", "messages.0.content.1")
        assert "10 MiB" in error["message"]


def test_responses_name_what_cannot_be_had(client):
    """By its place in their input."""
    seen = {"type": "input_image", "image_url": data_url("red", "TIFF")}
    asked = {"model": "seeing", "input": [{"role": "user", "content": [seen]}]}
    response = client.post(RESPONSES, json=asked)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == "input.0.content.0"


def test_a_picture_of_another_format_is_refused(client):
    """Those that are read are listed."""
    error = refused(client, image(data_url("red", "TIFF")))
    assert "JPEG, PNG, WebP, GIF" in error["message"]


def test_other_hosts_are_not_asked(client):
    """Nor the listed one by another name."""
    assert "does not list it" in refused(client, image("http://localhost:9/red.png"))["message"]


def test_a_picture_lies_beside_what_is_stored(client):
    """A stored conversation with a picture is answered and can be read again."""
    response = client.post(CHAT, json=body(image(data_url("red")), store=True))
    assert response.status_code == 200, response.text
    found = httpx.Response(404)
    for _ in range(50):
        found = client.get(f"{CHAT}/{response.json()['id']}/messages")
        if found.status_code == 200:
            break
    assert found.status_code == 200, found.text


# Sounds


def wav(hertz):
    """Half a second of one tone."""
    made = io.BytesIO()
    with wave.open(made, "wb") as file:
        file.setparams((1, 2, 16_000, 0, "NONE", ""))
        tone = (int(20_000 * math.sin(2 * math.pi * hertz * step / 16_000)) for step in range(8_000))
        file.writeframes(b"".join(struct.pack("<h", level) for level in tone))
    return base64.b64encode(made.getvalue()).decode()


def sound(hertz):
    return {"type": "audio_url", "audio_url": {"url": f"data:audio/wav;base64,{wav(hertz)}"}}


def heard(client, part, path=CHAT):
    return said(client, part, path, model="hearing")


def test_the_sound_decides_the_answer(hearing):
    """Two tones have two answers; the same one, the same, on both routes and in OpenAI's own form."""
    low, high = heard(hearing, sound(220)), heard(hearing, sound(3_000))
    assert heard(hearing, sound(220)) == pytest.approx(low, abs=1e-5)
    assert heard(hearing, sound(220), OXEN) == pytest.approx(low, abs=1e-5)
    sent = {"type": "input_audio", "input_audio": {"data": wav(220), "format": "wav"}}
    assert heard(hearing, sent) == pytest.approx(low, abs=1e-5)
    assert high != pytest.approx(low, abs=1e-3)


def test_a_model_that_hears_sees_nothing(hearing):
    """An image is named as what it does not take."""
    error = refused(hearing, image(data_url("red")), model="hearing")
    assert error["param"] == "messages.0.content.1"
    assert error["message"].endswith("only text, audio")
