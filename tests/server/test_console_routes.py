"""The console's files: what may be asked for, how they are kept, and what a page may do."""

import base64
import gzip
import hashlib
import json
import os
import re
import tomllib

import httpx
import pytest

from server.console_files import FOLDER, Console
from server.routes.console import router
from tests.server.apps import routes_alone


@pytest.fixture
async def client():
    transport = httpx.ASGITransport(routes_alone(router))
    headers = {"accept-encoding": "identity"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test", headers=headers) as client:
        yield client


def address(name: str) -> str:
    return f"/console/{Console.read().version}/{name}"


async def test_the_page_names_files_that_are_there(client):
    """What it links to and what modules import is served, and all of it comes from this server."""
    moved = await client.get("/console")
    assert moved.headers["location"] == "console/"  # below whatever path a proxy puts before it
    page = (await client.get("/console/")).text
    named = {f"/console/{each}" for each in re.findall(r'(?:href|src)="([^"]+)"', page)}
    assert len(named) >= 6
    for name, file in Console.read().files.items():
        if not name.endswith(".mjs") or name.startswith("vendor/"):
            continue
        for target in re.findall(r'(?:from|import\()\s*"(\.[^"]+)"', file.content.decode()):
            path = (FOLDER / name).parent.joinpath(target).resolve().relative_to(FOLDER)
            named.add(address(path.as_posix()))
    assert {each: (await client.get(each)).status_code for each in named} == dict.fromkeys(named, 200)
    own = [file for name, file in Console.read().files.items() if not name.startswith("vendor/")]
    outside = r"https?://(?!www\.w3\.org/2000/svg)"
    assert [file.name for file in own if re.search(outside, file.content.decode())] == []


async def test_the_policy_admits_nothing_inline(client):
    """Scripts and styles come from files; the one element with code in it, the import map, is named by its
    digest; nothing is framed, sent by a form, or fetched from elsewhere."""
    answer = await client.get("/console/")
    policy = dict(each.split(" ", 1) for each in answer.headers["content-security-policy"].split("; "))
    assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
    assert policy["style-src"] == policy["connect-src"] == "'self'"
    assert "unsafe" not in answer.headers["content-security-policy"]
    [inline] = re.findall(r"<script(?![^>]*src)[^>]*>(.*?)</script>", answer.text, re.DOTALL)
    digest = hashlib.sha256(inline.encode()).digest()
    assert policy["script-src"] == f"'self' 'sha256-{base64.b64encode(digest).decode()}'"
    assert not re.search(r"\sstyle=|\son\w+=", answer.text)
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "no-referrer"


async def test_files_are_kept_and_the_page_is_asked_about(client):
    """Files of this version are immutable, the page and files of another are asked about again; who has the
    content gets no other copy of it."""
    page, file = await client.get("/console/"), await client.get(address("app.mjs"))
    assert page.headers["cache-control"] == "no-cache"
    assert file.headers["cache-control"].endswith("immutable")
    assert file.headers["content-type"] == "text/javascript; charset=utf-8"
    old = await client.get("/console/0000000000000000/app.mjs")
    assert (old.status_code, old.headers["cache-control"]) == (200, "no-cache")
    for path, answer in (("/console/", page), (address("app.mjs"), file)):
        again = await client.get(path, headers={"if-none-match": answer.headers["etag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert again.headers["cache-control"] == answer.headers["cache-control"]


async def test_what_is_long_is_compressed_for_whom_takes_it(client):
    """As gzip where it is accepted, plain elsewhere; caches keep the two apart."""
    path = address("vendor/preact.mjs")
    plain = await client.get(path)
    async with client.stream("GET", path, headers={"accept-encoding": "gzip"}) as packed:
        raw = b"".join([part async for part in packed.aiter_raw()])
    assert packed.headers["content-encoding"] == "gzip"
    assert "accept-encoding" in packed.headers["vary"]
    assert gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 2


@pytest.mark.parametrize(
    "path",
    [
        "index.html",
        "vendor/pins.json",
        "vendor/LICENSE.preact",
        "../console_files.py",
        "%2e%2e/console_files.py",
        "..%2fsettings.py",
        "/etc/passwd",
        "nothing.mjs",
        "",
    ],
)
async def test_nothing_else_can_be_asked_for(client, path):
    """Neither what lies beside the files nor what lies above them."""
    assert (await client.get(address(path))).status_code == 404


def test_a_changed_file_has_another_address(tmp_path, monkeypatch):
    """So that what was cached is never taken for it."""
    monkeypatch.setattr("server.console_files.FOLDER", tmp_path)
    (tmp_path / "index.html").write_text("{version}")
    (tmp_path / "app.mjs").write_text("1")
    first = Console.read()
    (tmp_path / "app.mjs").write_text("22")
    os.utime(tmp_path / "app.mjs", ns=(1, 1))
    second = Console.read()
    assert first.version != second.version
    assert second.page.content.decode() == second.version


def test_what_is_not_ours_is_pinned():
    """Each vendored file has its package, version, source, licence and digest, and the digest is its own."""
    pins = json.loads((FOLDER / "vendor" / "pins.json").read_text())
    code = {path.name for path in (FOLDER / "vendor").iterdir() if path.suffix in (".mjs", ".css")}
    assert {pin["file"] for pin in pins} == code
    for pin in pins:
        assert hashlib.sha256((FOLDER / "vendor" / pin["file"]).read_bytes()).hexdigest() == pin["sha256"]
        assert f"{pin['package']}@{pin['version']}" in pin["source"]
        assert (FOLDER / "vendor" / pin["licence_file"]).stat().st_size > 500


def test_an_install_has_all_files():
    """Every file of the folder is among the package's data: licences and pins too."""
    project = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())
    patterns = project["tool"]["setuptools"]["package-data"]["server"]
    installed = {path for pattern in patterns for path in FOLDER.parent.glob(pattern)}
    assert {path for path in FOLDER.rglob("*") if path.is_file()} <= installed


def test_no_module_is_long():
    """Our own ones: one noun a file."""
    own = [path for path in FOLDER.rglob("*.mjs") if path.parent.name != "vendor"]
    assert {path.name for path in own if path.read_text().count("\n") > 400} == set()
