"""A running Steersman over HTTP, as the command line asks it: one request at a time."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

_SECONDS = 900  # the longest answer waited for: all pairs at one strength, or one preset
_SHOWN = 300  # bytes of an answer that is no JSON


class RemoteError(Exception):
    """What the server refused, or why it did not answer."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running Steersman. Raises RemoteError for whatever it does not do."""

    url: str
    key: str | None

    def get(self, path: str) -> Any:
        return json.loads(self._call("GET", path, None))

    def post(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        return json.loads(self._call("POST", path, body))

    def post_for_bytes(self, path: str, body: Mapping[str, Any]) -> bytes:
        return self._call("POST", path, body)

    def delete(self, path: str) -> Any:
        return json.loads(self._call("DELETE", path, None))

    def _call(self, method: str, path: str, body: Mapping[str, Any] | None) -> bytes:
        if not self.url.startswith(("http://", "https://")):
            raise RemoteError(f"--url begins with http:// or https://, not {self.url!r}")
        headers = {"accept": "application/json"} | ({"x-api-key": self.key} if self.key else {})
        data = None
        if method == "POST":
            data = b"" if body is None else json.dumps(body).encode()
            headers["content-type"] = "application/json"
        request = Request(self.url.rstrip("/") + path, data, headers, method=method)  # noqa: S310  # see above
        try:
            with urlopen(request, timeout=_SECONDS) as response:  # noqa: S310
                return bytes(response.read())
        except HTTPError as error:
            raise RemoteError(f"{method} {path}: {error.code} {_detail(error.read())}") from error
        except (URLError, TimeoutError, ConnectionError, HTTPException) as error:
            reason = getattr(error, "reason", error)
            raise RemoteError(f"{self.url} does not answer: {reason}") from error


def _detail(body: bytes) -> str:
    """The message of an error: Axionic's `detail` is a text, or a list of fields."""
    try:
        detail = json.loads(body)["detail"]
    except (ValueError, KeyError, TypeError):
        return body[:_SHOWN].decode(errors="replace")
    if isinstance(detail, str):
        return detail
    return "; ".join(f"{'.'.join(map(str, item['loc'][1:]))}: {item['msg']}" for item in detail)
