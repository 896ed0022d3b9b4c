"""Every line that this process and those it starts write, as one JSON object on standard output.

`json_log.json` is the configuration, in the form that vLLM reads by VLLM_LOGGING_CONFIG_PATH and hands to
every process it starts. What does not go through logging (prints, a library's own warnings, the last words of
a process that crashes) is written to the same descriptors, which are a pipe here: its lines are wrapped as
they come out.
"""

import atexit
import fcntl
import io
import json
import logging
import logging.config
import os
import signal
import sys
import threading
from collections.abc import Iterator, MutableMapping
from contextlib import suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from server.tracing import trace_id

PATH = Path(__file__).with_suffix(".json")
CONFIG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
LEVEL = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()  # json_log.json names it

# Set by the edge; tasks and threads that a request starts have it too.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def configure(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have this process, and those it starts, write JSON lines. To be called before vLLM is imported."""
    global _pipe  # noqa: PLW0603  # a process has one standard output
    environ[CONFIG_VARIABLE] = str(PATH)
    environ.setdefault("TQDM_DISABLE", "1")  # bars are for terminals
    if _pipe is None:
        _pipe = _Pipe()
        atexit.register(finish)
        logging.captureWarnings(capture=True)
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread
    logging.config.dictConfig(json.loads(PATH.read_text()))


def configured(environ: MutableMapping[str, str] = os.environ) -> bool:
    return environ.get(CONFIG_VARIABLE) == str(PATH)


class Lines(logging.Formatter):
    """A record as JSON: time (RFC 3339, UTC), level, logger, message, process; the ids of the request
    and of its trace, the record's `fields` and its exception where it has them."""

    def format(self, record: logging.LogRecord) -> str:
        return _line(
            record.levelname,
            record.name,
            record.getMessage(),
            created=record.created,
            process=getattr(record, "vllm_process_name", None) or record.processName,
            **getattr(record, "fields", {}),
            exception=self.formatException(record.exc_info) if record.exc_info else record.exc_text,
            stack=record.stack_info,
        )


def handler() -> logging.Handler:
    """Where `configure` was called the terminal or file behind the pipe, so that a crash loses no record."""
    return logging.StreamHandler(sys.stdout if _pipe is None else _pipe.out)


def finish() -> None:
    """Write what is still in the pipe. To be called before `os._exit`, which calls nothing else."""
    if _pipe is not None:
        _pipe.finish()


def _line(level: str, logger: str, message: str, *, created: float | None = None, **fields: Any) -> str:
    moment = datetime.now(UTC) if created is None else datetime.fromtimestamp(created, UTC)
    told = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "logger": logger,
        "message": message,
        "request_id": request_id.get(),
        "trace_id": trace_id(),
        **fields,
    }
    return json.dumps({name: value for name, value in told.items() if value is not None}, default=str)


class _Pipe:
    """What standard output and error are from now on, for this process and those it starts."""

    _SIZE = 2**20  # bytes: a traceback or two while this process is busy
    _LONGEST = 2**20  # bytes that wait for the end of their line
    _END = b"\0end of the log"
    _FINISH_SECONDS = 2.0

    def __init__(self) -> None:
        self.out: TextIO = io.TextIOWrapper(
            io.BufferedWriter(io.FileIO(os.dup(1), "w")), encoding="utf-8", line_buffering=True
        )
        sys.stdout.flush()
        sys.stderr.flush()
        self._reading, writing = os.pipe()
        with suppress(OSError, AttributeError):  # more than is allowed, or no Linux
            fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, self._SIZE)
        self._become(writing)
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(line_buffering=True)
        self._thread = threading.Thread(target=self._relay, name="json log", daemon=True)
        # A thread has the signal mask of its maker; this one is to take no signal from the others.
        mask = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            self._thread.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, mask)

    def finish(self) -> None:
        """What C libraries say after it, as they are unloaded, is dropped."""
        sys.stdout.flush()
        sys.stderr.flush()
        os.write(1, b"\n" + self._END + b"\n")
        self._thread.join(self._FINISH_SECONDS)
        self._become(os.open(os.devnull, os.O_WRONLY))

    @staticmethod
    def _become(descriptor: int) -> None:
        os.dup2(descriptor, 1)
        os.dup2(descriptor, 2)
        os.close(descriptor)

    def _relay(self) -> None:
        for line in self._lines():
            if line == self._END:
                return
            with suppress(OSError):  # a full disk, say: whoever writes must not come to wait for this pipe
                self.out.write(f"{_wrapped(line.decode(errors='replace'))}\n")

    def _lines(self) -> Iterator[bytes]:
        rest = b""
        while data := os.read(self._reading, 2**16):
            # A progress bar returns to the line's beginning.
            *lines, rest = (rest + data).replace(b"\r", b"\n").split(b"\n")
            yield from (line for line in lines if line.strip())
            if len(rest) > self._LONGEST:
                yield rest
                rest = b""


_pipe: _Pipe | None = None


def _wrapped(line: str) -> str:
    """As it is where another process of ours wrote it."""
    if line.startswith('{"time": '):
        with suppress(ValueError, RecursionError):
            json.loads(line)
            return line
    return _line("INFO", "output", line.rstrip())


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    told = (kind, error, traceback)
    logging.getLogger("server").critical("the process ends by an error", exc_info=told)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        told = (args.exc_type, args.exc_value, args.exc_traceback)
        name = args.thread.name if args.thread else "unknown"
        logging.getLogger("server").error("the thread %s ended by an error", name, exc_info=told)
