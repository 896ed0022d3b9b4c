"""The console's files as a browser gets them: read from disk at each request, compressed once."""

import base64
import gzip
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

FOLDER = Path(__file__).with_name("console")
INDEX = "index.html"
MEDIA_TYPES: Mapping[str, str] = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".mjs": "text/javascript; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
}
_LEAST_COMPRESSED = 1024  # bytes; below it the header outweighs the gain
_IMPORT_MAP = re.compile(r'<script type="importmap">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True, slots=True)
class ConsoleFile:
    """`digest` is of the content alone, so that it can serve as an ETag."""

    name: str
    content: bytes
    digest: str

    @classmethod
    def of(cls, name: str, content: bytes) -> "ConsoleFile":
        return cls(name, content, hashlib.sha256(content).hexdigest()[:32])

    @property
    def media_type(self) -> str:
        return MEDIA_TYPES[Path(self.name).suffix]

    @property
    def compressed(self) -> bytes | None:
        return _compressed(self.content) if len(self.content) >= _LEAST_COMPRESSED else None


@dataclass(frozen=True, slots=True)
class Console:
    """`files` by their paths: nothing else can be asked for. `version` is of all together; it stands in their
    addresses, so that what is cached can never be stale. `page` names the files of this version."""

    files: Mapping[str, ConsoleFile]
    version: str
    page: ConsoleFile

    @classmethod
    def read(cls) -> "Console":
        """Anew once a file has changed."""
        paths = sorted(path for path in FOLDER.rglob("*") if path.suffix in MEDIA_TYPES)
        return _read(tuple((path, path.stat().st_mtime_ns) for path in paths))


@lru_cache(maxsize=1)
def _read(paths: tuple[tuple[Path, int], ...]) -> Console:
    files = {
        (name := path.relative_to(FOLDER).as_posix()): ConsoleFile.of(name, path.read_bytes())
        for path, _ in paths
    }
    version = hashlib.sha256("".join(each.digest for each in files.values()).encode()).hexdigest()[:16]
    page = files[INDEX].content.decode().replace("{version}", version)
    return Console(files, version, ConsoleFile.of(INDEX, page.encode()))


def content_security_policy(page: str) -> str:
    """All from this server and no code in the page but its import map, which is named by its digest."""
    found = _IMPORT_MAP.search(page)
    digest = base64.b64encode(hashlib.sha256((found[1] if found else "").encode()).digest()).decode()
    return "; ".join(
        (
            "default-src 'none'",
            f"script-src 'self' 'sha256-{digest}'",
            "style-src 'self'",
            "img-src 'self' data:",
            "connect-src 'self'",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
            "require-trusted-types-for 'script'",
        )
    )


@lru_cache(maxsize=256)
def _compressed(content: bytes) -> bytes:
    return gzip.compress(content, mtime=0)
