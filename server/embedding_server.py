"""The server that embeds: another one, by OpenAI's API, since an engine that generates cannot."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Final

from aiohttp import (
    ClientConnectorError,
    ClientError,
    ClientOSError,
    ClientSession,
    ClientTimeout,
    ServerDisconnectedError,
    TCPConnector,
)

from server.embeddings_wire import Asked, BadAnswer, Embedded, WrongWidth, read
from server.errors import InvalidRequest, NotFound, PayloadTooLarge, SteersmanError, Unavailable
from server.settings import Settings

MAX_ANSWER_BYTES: Final = 256 * 1024**2  # 2,048 vectors of 4,096 numbers, written out
_CONNECT_SECONDS: Final = 5.0
_RETRY_SECONDS: Final = 0.2
_LIST_SECONDS: Final = 5.0
_NAMES_SECONDS: Final = 60.0  # for which the list of models is believed
_WAITING: Final = 4  # requests that may wait for each that runs
_SHOWN: Final = 500  # characters of a message
_FIELDS: Final = ("input", "model", "encoding_format", "dimensions", "user")  # as clients send them
# Maybe the connection had only been idle too long. To embed twice harms nobody.
_LOST = (ClientConnectorError, ClientOSError, ServerDisconnectedError)


@dataclass(frozen=True, slots=True)
class _Reply:
    status: int
    body: bytes
    retry_after: str | None


class EmbeddingServer:
    """One pooled client of the server at `url`, its root, which at most `at_once` requests use at a time.

    `model` is the one name of a server that lists none.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str | None = None,
        model: str | None = None,
        seconds: float = 60.0,
        at_once: int = 64,
        max_answer_bytes: int = MAX_ANSWER_BYTES,
    ) -> None:
        self._base = url
        self._headers = {"accept": "application/json"} | ({"authorization": f"Bearer {key}"} if key else {})
        self._model, self._seconds, self._max_bytes = model, seconds, max_answer_bytes
        self._slots, self._most, self._asking = asyncio.Semaphore(at_once), at_once * (1 + _WAITING), 0
        self._names: tuple[str, ...] = (model,) if model else ()
        self._names_until = float("inf") if model else 0.0
        self._client: ClientSession | None = None

    @classmethod
    def of(cls, settings: Settings) -> "EmbeddingServer | None":
        """None where none is configured."""
        if settings.embeddings_url is None:
            return None
        return cls(
            settings.embeddings_url,
            key=settings.embeddings_key,
            model=settings.embeddings_model,
            seconds=settings.embeddings_seconds,
            at_once=settings.embeddings_at_once,
        )

    async def resolve(self, name: str | None) -> str:
        """The name for what a client wrote: none is the first one. Raises NotFound, Unavailable."""
        names = await self.names()
        if name is None or name == "default":
            return names[0]
        if name not in names:
            raise NotFound(
                f"model '{name}' does not embed here; those that do: {', '.join(names)}",
                param="model",
                code="model_not_found",
            )
        return name

    async def names(self) -> Sequence[str]:
        """The models of the embedding server. Raises Unavailable."""
        if time.monotonic() < self._names_until:
            return self._names
        async with self._slot(min(self._seconds, _LIST_SECONDS)):
            reply = await self._ask("GET", "/v1/models")
        if reply.status != 200:
            raise _refused(reply)
        try:
            names = tuple(str(model["id"]) for model in json.loads(reply.body)["data"])
        except (ValueError, KeyError, TypeError) as error:
            raise Unavailable("the embedding server's list of models cannot be read") from error
        if not names:
            raise Unavailable("the embedding server lists no model", retry_after=5)
        self._names, self._names_until = names, time.monotonic() + _NAMES_SECONDS
        return names

    async def embed(self, asked: Asked) -> Embedded:
        """Raises Unavailable, and what the server answers in the words of OpenAI's errors."""
        async with self._slot(self._seconds):
            reply = await self._ask("POST", "/v1/embeddings", asked.as_body())
            if reply.status != 200:
                raise _refused(reply)
            try:
                return await asyncio.to_thread(read, reply.body, asked)
            except WrongWidth as error:
                raise InvalidRequest(str(error), param="dimensions") from error
            except BadAnswer as error:
                raise Unavailable(f"the embedding server's answer cannot be used: {error}") from error

    async def close(self) -> None:
        if self._client is not None:
            await self._client.close()

    @asynccontextmanager
    async def _slot(self, seconds: float) -> AsyncIterator[None]:
        if self._asking >= self._most:
            raise Unavailable("too many requests wait for the embedding server", retry_after=1)
        self._asking += 1
        try:
            async with asyncio.timeout(seconds), self._slots:
                yield
        except TimeoutError as error:
            raise Unavailable(
                f"the embedding server took longer than {seconds:g} s", retry_after=5
            ) from error
        finally:
            self._asking -= 1

    async def _ask(self, method: str, path: str, body: Any = None) -> _Reply:
        try:
            try:
                return await self._once(method, path, body)
            except _LOST:
                await asyncio.sleep(_RETRY_SECONDS)
                return await self._once(method, path, body)
        except ClientError as error:
            raise Unavailable(f"the embedding server does not answer: {error}", retry_after=5) from error

    async def _once(self, method: str, path: str, body: Any) -> _Reply:
        async with self._session().request(
            method, self._base + path, json=body, headers=self._headers, allow_redirects=False
        ) as response:
            content = await self._content(response.content)
            return _Reply(response.status, content, response.headers.get("retry-after"))

    async def _content(self, stream: Any) -> bytes:
        content = bytearray()
        async for chunk in stream.iter_any():
            content += chunk
            if len(content) > self._max_bytes:
                raise Unavailable(f"the embedding server's answer is larger than {self._max_bytes} bytes")
        return bytes(content)

    def _session(self) -> ClientSession:
        if self._client is None:
            # `_slot` bounds the whole, the wait for a slot included.
            self._client = ClientSession(
                connector=TCPConnector(limit=0, keepalive_timeout=15),
                timeout=ClientTimeout(total=None, sock_connect=_CONNECT_SECONDS),
                trust_env=False,
            )
        return self._client


def _refused(reply: _Reply) -> SteersmanError:
    message, param = _told(reply.body)
    if reply.status in (400, 422):
        return InvalidRequest(message, param=param)
    if reply.status == 404:
        return NotFound(message, param=param)
    if reply.status == 413:
        return PayloadTooLarge(message, param=param)
    if reply.status in (401, 403):
        return Unavailable(f"the embedding server refuses this server: {message}")
    if 300 <= reply.status < 400:
        return Unavailable("the embedding server redirects, which is not followed")
    seconds = reply.retry_after or ""
    retry_after = min(int(seconds), 3600) if seconds.isdecimal() else 5
    return Unavailable(f"the embedding server answers {reply.status}: {message}", retry_after=retry_after)


def _told(body: bytes) -> tuple[str, str | None]:
    """The message of an error and the field it names: in OpenAI's form, TEI's, or FastAPI's."""
    try:
        error = json.loads(body)
    except ValueError:
        return body[:_SHOWN].decode(errors="replace") or "no message", None
    if isinstance(error, dict) and isinstance(error.get("error"), dict):
        error = error["error"]
    if not isinstance(error, dict):
        return str(error)[:_SHOWN], None
    message = error.get("message") or error.get("error") or error.get("detail") or "no message"
    param = error.get("param")
    return str(message)[:_SHOWN], param if param in _FIELDS else None
