"""Tell whoever started the server when it is ready, where it is and how to call it."""

import logging
import socket
import ssl
import sys
import threading
import time
from argparse import Namespace
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection

from server.settings import Settings

logger = logging.getLogger(__name__)

_POLL_SECONDS = 0.5
_ANSWER_SECONDS = 2.0


def announce(args: Namespace, settings: Settings, first_key: str | None, more: Sequence[str] = ()) -> None:
    """Print once, from a thread, as soon as /health answers 200. The key is shown this one time."""
    given = (args, settings, first_key, more)
    threading.Thread(target=_wait_and_print, args=given, daemon=True).start()


def _wait_and_print(args: Namespace, settings: Settings, first_key: str | None, more: Sequence[str]) -> None:
    while not _healthy(args):
        time.sleep(_POLL_SECONDS)
    if settings.log_format == "json":
        logger.info("Steersman is ready: %s", args.uds or _url(args))
        for line in _told(settings, first_key, more, None if args.uds else _url(args)):
            logger.info("%s", line)
        return
    print(text(_url(args), settings, first_key, uds=args.uds, more=more), file=sys.stdout, flush=True)


def _healthy(args: Namespace) -> bool:
    connection = _connection(args)
    try:
        if args.uds:
            connection.sock = socket.socket(socket.AF_UNIX)
            connection.sock.settimeout(_ANSWER_SECONDS)
            connection.sock.connect(args.uds)
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except (OSError, HTTPException):
        return False
    finally:
        connection.close()


def _connection(args: Namespace) -> HTTPConnection:
    host = _host(args)
    if not args.ssl_certfile:
        return HTTPConnection(host, args.port, timeout=_ANSWER_SECONDS)
    context = ssl._create_unverified_context()  # noqa: S323, SLF001  # only asks its own process whether it is up
    return HTTPSConnection(host, args.port, timeout=_ANSWER_SECONDS, context=context)


def _host(args: Namespace) -> str:
    return args.host if args.host not in (None, "", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104


def _url(args: Namespace) -> str:
    if args.uds:
        return "http://localhost"
    host = _host(args)
    return f"{'https' if args.ssl_certfile else 'http'}://{f'[{host}]' if ':' in host else host}:{args.port}"


def text(
    url: str, settings: Settings, first_key: str | None, *, uds: str | None = None, more: Sequence[str] = ()
) -> str:
    """The banner. Without a fresh key it says how to make one; `uds` is the socket that takes the place of
    a port, `more` are lines of what was chosen for the model."""
    curl, place = (f"curl --unix-socket {uds}", uds) if uds else ("curl", url)
    key = first_key or "$STEERSMAN_KEY"
    told = "\n".join(_told(settings, first_key, more, None if uds else url))
    return f"""
Steersman is ready: {place}
{told}

{curl} {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"messages": [{{"role": "user", "content": "Name three fruits."}}],
       "temperature": 0, "max_tokens": 40}}'
"""


def _told(settings: Settings, first_key: str | None, more: Sequence[str], url: str | None) -> list[str]:
    shown = (
        f"API key (shown once): {first_key}"
        if first_key
        else "API key: as made before; `steersman keys create` makes another"
    )
    pages = [] if url is None else [f"Console: {url}/console"]
    return [*pages, shown, f"Data: {settings.home}", *more]
