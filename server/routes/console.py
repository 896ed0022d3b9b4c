"""GET /console: the pages to see and steer by, in a browser. They ask the other routes as any client does."""

from fastapi import APIRouter, Request
from fastapi.responses import RedirectResponse, Response

from server.console_files import INDEX, Console, ConsoleFile, content_security_policy
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
def to_the_page() -> Response:
    return RedirectResponse("console/", status_code=307)


@router.get("/console/{file:path}")
def console_file(file: str, request: Request) -> Response:
    """The page itself at the empty path; everything else below the version of the files."""
    console = Console.read()
    if file == "":
        policy = content_security_policy(console.page.content.decode())
        return _answer(console.page, request, "no-cache", {"content-security-policy": policy})
    version, _, name = file.partition("/")
    found = console.files.get(name)
    if found is None or name == INDEX:
        raise NoRoute(f"no route GET {request.url.path}")
    current = version == console.version
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
