"""What whoever started the server is told, and when."""

import shlex
import socket
import threading
import time
from argparse import Namespace
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from server import banner
from server.settings import Settings

SETTINGS = Settings(home=Path("/data/steersman"), database_url="sqlite+aiosqlite://")
KEY = "ax_" + "0" * 48


class Health(BaseHTTPRequestHandler):
    """Answers /health with the next status of a script, the last one for ever."""

    script: list[int]

    def do_GET(self) -> None:
        assert self.path == "/health"
        script = self.server.script
        status = script.pop(0) if len(script) > 1 else script[0]
        if status == 0:  # not HTTP at all
            self.wfile.write(b"220 mail.example ESMTP\r\n\r\n")
            return
        self.send_response(status)
        self.end_headers()

    def address_string(self) -> str:
        return "test"  # a socket's client has no address

    def log_message(self, *args: object) -> None:
        """Quiet."""


class UnixServer(HTTPServer):
    address_family = socket.AF_UNIX

    def server_bind(self) -> None:
        self.socket.bind(self.server_address)


@contextmanager
def served(*script: int, uds: str | None = None):
    server = UnixServer(uds, Health) if uds else HTTPServer(("127.0.0.1", 0), Health)
    server.script = list(script)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def arguments(**changes: object) -> Namespace:
    return Namespace(**{"host": None, "port": 8000, "uds": None, "ssl_certfile": None, **changes})


def announced(monkeypatch, args: Namespace, key: str | None = KEY, seconds: float = 5) -> list[str]:
    """What `announce` prints, one entry per print; it must return at once."""
    printed: list[str] = []
    ready = threading.Event()
    monkeypatch.setattr(banner, "_POLL_SECONDS", 0.01)

    def show(text: str, **_options: object) -> None:
        printed.append(text)
        ready.set()

    monkeypatch.setattr(banner, "print", show, raising=False)
    banner.announce(args, SETTINGS, key)
    ready.wait(seconds)
    time.sleep(0.05)
    return printed


def test_it_waits_until_the_server_is_healthy(monkeypatch):
    """Errors, and answers that are not HTTP, are waited out; then the banner is printed, once."""
    with served(503, 0, 500, 200) as server:
        (printed,) = announced(monkeypatch, arguments(port=server.server_port))
        assert server.script == [200]
    assert f"http://127.0.0.1:{server.server_port}\n" in printed


@pytest.mark.parametrize("uds", [None, "/nowhere/socket"])
def test_nobody_there_is_not_healthy(uds):
    """While nobody listens the server is not healthy, and asking is not an error."""
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        port = reserved.getsockname()[1]
    assert banner._healthy(arguments(port=port, uds=uds)) is False


def test_a_unix_socket(monkeypatch, tmp_path):
    """On a socket it is the same: the first key is shown there too, with a command that reaches it."""
    path = str(tmp_path / "s")
    with served(503, 200, uds=path):
        (printed,) = announced(monkeypatch, arguments(uds=path))
    assert f"ready: {path}\n" in printed
    assert f"API key (shown once): {KEY}\n" in printed
    assert f"curl --unix-socket {path} http://localhost/v1/chat/completions" in printed


@pytest.mark.parametrize(
    ("changes", "url"),
    [
        ({}, "http://127.0.0.1:8000"),
        ({"host": "0.0.0.0"}, "http://127.0.0.1:8000"),
        ({"host": "::", "port": 1}, "http://127.0.0.1:1"),
        ({"host": "gpu-7.lan"}, "http://gpu-7.lan:8000"),
        ({"host": "::1"}, "http://[::1]:8000"),
        ({"ssl_certfile": "c.pem"}, "https://127.0.0.1:8000"),
    ],
)
def test_urls(changes, url):
    """The URL is one that can be opened here: no wildcard address, IPv6 in brackets."""
    assert banner._url(arguments(**changes)) == url


def test_the_first_key():
    """A fresh key is shown, said to be shown once, and stands in the example."""
    shown = banner.text("http://h:1", SETTINGS, KEY)
    assert "http://h:1/console\n" in shown
    assert f"API key (shown once): {KEY}\n" in shown
    assert f"Authorization: Bearer {KEY}" in shown
    assert "Data: /data/steersman\n" in shown


def test_a_later_start():
    """Without a fresh key the banner says how to make one, and the example names a variable."""
    shown = banner.text("http://h:1", SETTINGS, None)
    assert "Bearer ax_" not in shown
    assert "`steersman keys create`" in shown
    assert "Bearer $STEERSMAN_KEY" in shown


def test_the_example_is_a_command():
    """The example can be pasted into a shell: one curl call with valid JSON for /v1."""
    import json

    shown = banner.text("http://h:1", SETTINGS, KEY)
    words = shlex.split(shown[shown.index("curl ") :].replace("\\\n", ""))
    assert words[:2] == ["curl", "http://h:1/v1/chat/completions"]
    assert json.loads(words[words.index("-d") + 1])["messages"][0]["role"] == "user"
