"""What `helm test` runs, against a server that is well and servers that are not."""

import json
import os
import subprocess
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from tests.deploy.tools import ROOT

CHECK = ROOT / "helm/files/check.py"
KEY = "ax_test"


@contextmanager
def serving(answers):
    """A server whose `answers(path, key, body)` give status and text; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self._answer(None)

        def do_POST(self):
            self._answer(json.loads(self.rfile.read(int(self.headers["content-length"]))))

        def _answer(self, body):
            key = (self.headers.get("authorization") or "").removeprefix("Bearer ")
            status, text = answers(self.path, key, body)
            self.send_response(status)
            self.send_header("content-length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def well(path, key, body):
    if path == "/health":
        return 200, ""
    if key != KEY:
        return 401, "{}"
    if path == "/v1/models":
        return 200, json.dumps({"data": [{"id": "m"}]})
    if body["model"] != "m":
        return 404, "{}"
    if body.get("stream"):
        return 200, 'data: {"choices": []}\n\n' * 3 + "data: [DONE]\n\n"
    return 200, json.dumps({"choices": [{"text": " three"}]})


def check(url, **environ):
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("STEERSMAN_")}
    return subprocess.run(
        [sys.executable, CHECK],
        env=inherited | {"STEERSMAN_URL": url} | environ,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


def test_a_server_that_is_well_passes():
    """All five checks are made and pass."""
    with serving(well) as url:
        done = check(url, STEERSMAN_KEY=KEY)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("ok    ") == 5


BROKEN = {
    "unhealthy": ("/health", lambda *_: (503, "")),
    "open": ("/v1/models", lambda *_: (200, json.dumps({"data": [{"id": "m"}]}))),
    "empty": ("/v1/models", lambda _, key, __: (200, '{"data": []}') if key else (401, "")),
    "silent": ("/v1/completions", lambda *_: (200, '{"choices": []}')),
    "failing": ("/v1/completions", lambda *_: (500, "")),
    "cut": ("/v1/chat/completions", lambda *_: (200, 'data: {"choices": []}\n\n' * 3)),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_server_that_is_not_fails(kind):
    """Each defect ends the check with a status that Helm reports, and says which it was."""
    broken, instead = BROKEN[kind]

    def answers(path, key, body):
        return instead(path, key, body) if path == broken else well(path, key, body)

    with serving(answers) as url:
        done = check(url, STEERSMAN_KEY=KEY)
    assert done.returncode != 0
    assert f"{broken}" in done.stderr


def test_without_a_key_it_makes_one_and_revokes_it(tmp_path):
    """`steersman keys` on the database gives the key; afterwards none is in force."""
    log = tmp_path / "calls"
    program = tmp_path / "steersman"
    program.write_text(f'#!/bin/sh\necho "$@" >> {log}\n[ "$2" = create ] && echo {KEY}\nexit 0\n')
    program.chmod(0o755)
    with serving(well) as url:
        done = check(url, STEERSMAN_MAKES_KEY="true", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.returncode == 0, done.stderr
    assert log.read_text().splitlines() == ["keys create --name helm test", f"keys revoke {KEY}"]


def test_where_no_key_can_be_had_it_says_what_it_left_out():
    """Only health and the refusal are checked, and it says so."""
    with serving(well) as url:
        done = check(url)
    assert done.returncode == 0
    assert "skipped" in done.stdout
    assert done.stdout.count("ok    ") == 2
