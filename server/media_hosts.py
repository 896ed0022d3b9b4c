"""From which hosts the media of requests may be fetched: those an operator lists, none by default.

What is checked is what is used: the URL is parsed by the HTTP client's own parser, and the addresses that a
name resolves to are judged on their way to the connection, so that no second look-up can bring others.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

_NAT64 = IPv6Network("64:ff9b::/96")


class MediaRefused(Exception):
    """Why a media URL is not fetched, for its client to read."""


@dataclass(frozen=True, slots=True)
class MediaHosts:
    """Hosts by exact name, or by IPv4 address.

    A listed name must resolve to public addresses alone. One that is not public has to be listed itself.
    """

    listed: frozenset[str]

    @classmethod
    def of(cls, hosts: Iterable[str] | None) -> "MediaHosts":
        return cls(frozenset(host.strip().lower() for host in hosts or ()))

    def check(self, url: str) -> URL:
        """`url` as it is to be asked for. Raises MediaRefused."""
        if "\\" in url or " " in url or not url.isprintable():
            raise MediaRefused("the URL holds characters that belong escaped")
        try:
            parsed = URL(url)
            host, port = parsed.raw_host, parsed.port
        except (ValueError, IndexError) as error:  # the parser trips over "]" before "["
            raise MediaRefused(f"the URL cannot be read: {error}") from error
        if parsed.scheme not in {"http", "https"}:
            raise MediaRefused("the URL is neither an http, https nor a data URL")
        if not host or not port:
            raise MediaRefused("the URL names no host, or no port")
        if parsed.raw_user is not None or parsed.raw_password is not None:
            raise MediaRefused("the URL holds credentials, which are not sent")
        if host.lower() not in self.listed or ":" in host:
            raise MediaRefused(
                f"media is not fetched from {host}: the server's --allowed-media-domains does not list it"
            )
        return parsed

    def admits(self, address: str) -> bool:
        """Whether a listed name may stand for `address`."""
        return address in self.listed or _is_public(ip_address(address.partition("%")[0]))


def _is_public(address: IPv4Address | IPv6Address) -> bool:
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is not None:
            return _is_public(address.ipv4_mapped)
        inner = IPv4Address(int(address) & 0xFFFFFFFF) if address in _NAT64 else address.sixtofour
        if inner is not None and not _is_public(inner):
            return False
    return address.is_global and not address.is_multicast


class ListedResolver(AbstractResolver):
    """A resolver that gives no address which `hosts` does not admit."""

    def __init__(self, hosts: MediaHosts, inner: AbstractResolver) -> None:
        self._hosts, self._inner = hosts, inner

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        """Raises MediaRefused where one of the addresses is not admitted: such a name is no mishap."""
        found = await self._inner.resolve(host, port, family)
        if not all(self._hosts.admits(each["host"]) for each in found):
            raise MediaRefused(f"{host} resolves to an address that is not public")
        return found

    async def close(self) -> None:
        await self._inner.close()
