"""GET /console: the pages to see and steer by, for a browser. They ask the other routes as any client does."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from server import console_files
from server.console_files import ConsoleFile, content_security_policy
from server.errors import NoRoute

_YEAR = 365 * 24 * 3600
_PRIVATE = {
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}

router = APIRouter(include_in_schema=False)


@router.get("/console")
def console() -> Response:
    return RedirectResponse("console/", status_code=307)


@router.get("/console/{file:path}")
def console_file(file: str, request: Request) -> Response:
    """The page itself at the empty path; everything else below the version of the files."""
    if file == "":
        page = console_files.index()
        policy = content_security_policy(page.content.decode())
        return _answer(page, request, "no-cache", {"content-security-policy": policy})
    version, _, name = file.partition("/")
    found = console_files.read(name) if name != console_files.INDEX else None
    if found is None:
        raise NoRoute(f"no route GET {request.url.path}")
    current = version == console_files.version()
    return _answer(found, request, f"public, max-age={_YEAR}, immutable" if current else "no-cache", {})


def _answer(file: ConsoleFile, request: Request, cached: str, more: dict[str, str]) -> Response:
    etag = f'"{file.digest}"'
    headers = {"etag": etag, "cache-control": cached, "vary": "accept-encoding", **_PRIVATE, **more}
    if etag in request.headers.get("if-none-match", ""):
        return Response(status_code=304, headers=headers)
    content = file.content
    if "gzip" in request.headers.get("accept-encoding", "") and file.compressed is not None:
        content = file.compressed
        headers["content-encoding"] = "gzip"
    return Response(content, media_type=file.media_type, headers=headers)
