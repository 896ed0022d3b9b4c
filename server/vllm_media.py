"""How vLLM comes by the media that requests name: its own connector, held to the hosts that are listed.

vLLM asks `VLLM_MEDIA_CONNECTOR` for the class that every route's media parts go through. Its own one takes an
empty `--allowed-media-domains` for all hosts, looks at names alone, and follows redirects.
"""

import functools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from aiohttp import ClientError, ClientResponse, ClientSession, ClientTimeout, TCPConnector
from aiohttp.abc import AbstractResolver
from aiohttp.resolver import DefaultResolver
from PIL.Image import DecompressionBombError
from vllm.connections import HTTPConnection, HTTPResponseSizeExceededError
from vllm.exceptions import VLLMUnprocessableEntityError
from vllm.multimodal.media.connector import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.image import ImageMediaIO

from server.image_files import MAX_IMAGE_BYTES, check_image, check_size
from server.media_hosts import ListedResolver, MediaHosts, MediaRefused
from server.vllm_errors import MediaFailed

CONNECTOR = "steersman"
_VISION = "vision_chunk"  # what some models call images and videos alike


def modalities(engine_client: Any) -> frozenset[str]:
    """What the served model takes beside text: image, video, audio."""
    processor = engine_client.renderer.mm_processor
    if processor is None:
        return frozenset()
    taken = {name for name, most in processor.info.allowed_mm_limits.items() if most}
    return frozenset((taken - {_VISION}) | ({"image", "video"} if _VISION in taken else set()))


class ListedConnection(HTTPConnection):
    """vLLM's HTTP client without proxies, redirects and unlisted hosts. Its methods raise MediaRefused."""

    def __init__(self, hosts: MediaHosts, resolver: AbstractResolver | None = None) -> None:
        super().__init__()
        self._hosts, self._resolver = hosts, resolver
        self._client: ClientSession | None = None

    def get_sync_client(self) -> Any:
        raise MediaRefused("media URLs are not fetched on this route")

    async def get_async_client(self) -> ClientSession:
        if self._client is None:
            resolver = ListedResolver(self._hosts, self._resolver or DefaultResolver())
            # A proxy would resolve names by itself.
            self._client = ClientSession(
                connector=TCPConnector(resolver=resolver, use_dns_cache=False),
                trust_env=False,
                raise_for_status=_refuse_redirect,
            )
        return self._client

    async def get_async_response(
        self,
        url: str,
        *,
        timeout: float | None = None,  # noqa: ASYNC109  # vLLM's signature
        extra_headers: Mapping[str, str] | None = None,
        allow_redirects: bool = True,  # noqa: ARG002
    ) -> Any:
        target = self._hosts.check(url)
        client = await self.get_async_client()
        return client.get(
            target,
            headers=self._headers(**(extra_headers or {})),
            timeout=ClientTimeout(total=timeout),
            allow_redirects=False,
        )


async def _refuse_redirect(response: ClientResponse) -> None:
    if 300 <= response.status < 400:
        response.close()
        raise MediaRefused(f"{response.url.host} redirects, which is not followed")


@functools.cache
def _connection(hosts: MediaHosts) -> ListedConnection:
    return ListedConnection(hosts)


@MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)
class ListedMedia(MediaConnector):
    """Raises MediaFailed for all that cannot be had: a client named it, and is told why."""

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        connection: HTTPConnection | None = None,
        *,
        allowed_local_media_path: str = "",
        allowed_media_domains: list[str] | None = None,
    ) -> None:
        self._hosts = MediaHosts.of(allowed_media_domains)
        super().__init__(
            media_io_kwargs,
            connection or _connection(self._hosts),
            allowed_local_media_path=allowed_local_media_path,
            allowed_media_domains=sorted(self._hosts.listed),
        )

    def load_from_url(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        with _told(url):
            self._check(url)
            return super().load_from_url(url, _bounded(media_io), fetch_timeout=fetch_timeout)

    async def load_from_url_async(self, url: str, media_io: Any, *, fetch_timeout: int | None = None) -> Any:
        with _told(url):
            self._check(url)
            bounded = _bounded(media_io)
            return await super().load_from_url_async(url, bounded, fetch_timeout=fetch_timeout)

    def _check(self, url: str) -> None:
        scheme = url.partition(":")[0].lower()
        if scheme == "file" and self.allowed_local_media_path is not None:
            return  # vLLM holds it to that folder
        if scheme != "data":
            self._hosts.check(url)


class BoundedImages(ImageMediaIO):
    """vLLM's reader of images, which looks at size and format before it decodes. Raises MediaRefused."""

    def __init__(self, like: ImageMediaIO) -> None:
        super().__init__(like.image_mode, **like.kwargs)

    def get_max_bytes(self) -> int:
        return MAX_IMAGE_BYTES  # what is fetched is cut off there

    def load_bytes(self, data: bytes) -> Any:
        check_image(data)
        return super().load_bytes(data)

    def load_base64(self, media_type: str, data: str) -> Any:
        check_size(len(data) * 3 // 4 - data[-2:].count("="))
        return super().load_base64(media_type, data)

    def load_file(self, filepath: Path) -> Any:
        check_size(filepath.stat().st_size)
        return super().load_file(filepath)


def _bounded(media_io: Any) -> Any:
    return BoundedImages(media_io) if isinstance(media_io, ImageMediaIO) else media_io


@contextmanager
def _told(url: str) -> Iterator[None]:
    """vLLM has no status, or a server's, for some of what a client's URL leads to."""
    try:
        yield
    except HTTPResponseSizeExceededError as error:
        refused = f"the file is larger than {error.max_bytes // 1024**2} MiB, the most that is fetched"
        raise MediaFailed(refused, url) from error
    except (MediaRefused, VLLMUnprocessableEntityError) as error:
        raise MediaFailed(str(error.args[0]), url) from error
    except (ClientError, OSError, ValueError, DecompressionBombError, NotImplementedError) as error:
        reason = str(error) or type(error).__name__
        raise MediaFailed(f"the media could not be loaded: {reason}", url) from error
