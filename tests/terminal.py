"""A command in a terminal of its own, and what a person would type there."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """Runs `command` until `end`. Whatever does not come within `seconds` fails the test."""

    def __init__(self, command: Sequence[str], environ: Mapping[str, str], seconds: float = 240) -> None:
        self._deadline = time.monotonic() + seconds
        self._screen, inside = pty.openpty()
        # Without a controlling terminal getpass asks on standard input, which is one.
        self._process = subprocess.Popen(
            command, env=dict(environ), stdin=inside, stdout=inside, stderr=inside, start_new_session=True
        )
        os.close(inside)
        self.shown = ""
        self._read = 0

    def answer(self, prompt: str, line: str) -> None:
        """Type `line` when `prompt` stands there."""
        while prompt not in self.shown[self._read :]:
            assert self._more(), f"it ended without {prompt!r}:\n{self.shown}"
        self._read = self.shown.index(prompt, self._read) + len(prompt)
        time.sleep(0.1)  # a prompt may be written before its terminal stops echoing
        os.write(self._screen, f"{line}\n".encode())

    def end(self) -> str:
        """All that was shown, after the command has ended with status 0."""
        while self._more():
            pass
        os.close(self._screen)
        assert self._process.wait(30) == 0, self.shown
        return self.shown

    def _more(self) -> bool:
        left = self._deadline - time.monotonic()
        if not select.select([self._screen], [], [], max(left, 0))[0]:
            self._process.kill()
            raise AssertionError(f"too slow:\n{self.shown}")
        data = b""
        with suppress(OSError):  # how Linux says that nobody holds the other end any more
            data = os.read(self._screen, 4096)
        self.shown += _STYLE.sub("", data.decode(errors="replace"))
        return bool(data)


def mechanex(home: Path, url: str, *words: str) -> Terminal:
    """Axionic's command line, with `home` for its credentials, against the server at `url`."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    ours = {"HOME": str(home), "MECHANEX_BASE_URL": url, "COLUMNS": "200", "NO_COLOR": "1"}
    return Terminal([sys.executable, "-m", "mechanex.cli", *words], kept | ours)
