"""A server of our own with an autoencoder, for what measures watching; or the one that was named."""

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from server.settings import Settings
from tests.bench.serve import REPO, _embedded, _steersman


@dataclass(frozen=True)
class WatchedServer:
    """`home` is where its autoencoders lie, `model` the folder of what it serves."""

    url: str
    key: str
    home: Path
    model: Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", default=os.environ.get("STEERSMAN_URL"), help="default: a server of its own")
    parser.add_argument("--key", default=os.environ.get("STEERSMAN_KEY", ""))
    parser.add_argument("--home", type=Path, help="of the server at --url")
    parser.add_argument("--model", type=Path, help="the model's folder; the embedded one by default")
    parser.add_argument("--minutes", type=float, default=4, help="of capturing, for a server of its own")


@contextmanager
def watched_server(args: argparse.Namespace) -> Iterator[WatchedServer]:
    model = args.model or _embedded()
    if args.url:
        yield WatchedServer(args.url, args.key, args.home or Settings.read().home, model)
        return
    with tempfile.TemporaryDirectory() as scratch:
        home = Path(scratch, "home")
        with _steersman(model, Path(scratch), ["--home", str(home)]) as served:
            train = [sys.executable, "-m", "server", "sae", "train", "--minutes", str(args.minutes)]
            train += ["--url", served.url, "--key", served.key]
            environ = os.environ | {"STEERSMAN_HOME": str(home)}
            if subprocess.run(train, cwd=REPO, env=environ, stdout=sys.stderr, check=False).returncode:
                sys.exit("no autoencoder was trained")
            yield WatchedServer(served.url, served.key, home, model)
