"""Tell whoever started the server when it is ready, where it is and how to call it."""

import ssl
import sys
import threading
import time
from argparse import Namespace
from http.client import HTTPConnection, HTTPSConnection

from server.settings import Settings

_POLL_SECONDS = 0.5


def announce(args: Namespace, settings: Settings, first_key: str | None) -> None:
    """Print once, from a thread, as soon as /health answers 200. The key is shown this one time."""
    thread = threading.Thread(target=_wait_and_print, args=(args, settings, first_key), daemon=True)
    thread.start()


def _wait_and_print(args: Namespace, settings: Settings, first_key: str | None) -> None:
    if args.uds:
        return  # a socket for a proxy, not for people
    while not _healthy(args):
        time.sleep(_POLL_SECONDS)
    print(text(_url(args), settings, first_key), file=sys.stdout, flush=True)


def _healthy(args: Namespace) -> bool:
    host = _host(args)
    if args.ssl_certfile:
        context = ssl._create_unverified_context()  # noqa: S323, SLF001  # only asks its own process whether it is up
        connection: HTTPConnection = HTTPSConnection(host, args.port, timeout=2, context=context)
    else:
        connection = HTTPConnection(host, args.port, timeout=2)
    try:
        connection.request("GET", "/health")
        return connection.getresponse().status == 200
    except OSError:
        return False
    finally:
        connection.close()


def _host(args: Namespace) -> str:
    return args.host if args.host not in (None, "", "0.0.0.0", "::") else "127.0.0.1"  # noqa: S104


def _url(args: Namespace) -> str:
    return f"{'https' if args.ssl_certfile else 'http'}://{_host(args)}:{args.port}"


def text(url: str, settings: Settings, first_key: str | None) -> str:
    """The banner. Without a fresh key it says how to make one."""
    key = first_key or "$STEERSMAN_KEY"
    shown = (
        f"API key (shown once): {first_key}"
        if first_key
        else "API key: as made before; `steersman keys create` makes another"
    )
    return f"""
Steersman is ready: {url}
{shown}
Data: {settings.home}

curl {url}/v1/chat/completions \\
  -H "Authorization: Bearer {key}" -H "Content-Type: application/json" \\
  -d '{{"messages": [{{"role": "user", "content": "What is the capital of France?"}}], "max_tokens": 40}}'
"""
