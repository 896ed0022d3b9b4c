"""Every line that this process and its engines write as one JSON object.

`json_log.json` is the configuration, in the form that vLLM reads by VLLM_LOGGING_CONFIG_PATH and hands to
every process it starts; each of them applies it with this module's `Lines` and `handler`. What does not go
through logging (prints, progress, a traceback) is caught where it would leave for the terminal, by lines.
"""

import json
import logging
import logging.config
import os
import sys
import threading
from collections.abc import MutableMapping
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

PATH = Path(__file__).with_suffix(".json")
CONFIG_VARIABLE = "VLLM_LOGGING_CONFIG_PATH"
LEVEL = os.environ.get("VLLM_LOGGING_LEVEL", "INFO").upper()  # json_log.json names it

# Set by the edge; tasks and threads that a request starts have it too.
request_id: ContextVar[str | None] = ContextVar("request_id", default=None)


def configure(environ: MutableMapping[str, str] = os.environ) -> None:
    """Have this process, and those it starts, write JSON lines. To be called before vLLM is imported."""
    environ[CONFIG_VARIABLE] = str(PATH)
    environ.setdefault("TQDM_DISABLE", "1")  # bars are for terminals
    logging.config.dictConfig(json.loads(PATH.read_text()))


def configured(environ: MutableMapping[str, str] = os.environ) -> bool:
    return environ.get(CONFIG_VARIABLE) == str(PATH)


class Lines(logging.Formatter):
    """A record as JSON: time (RFC 3339, UTC), level, logger, message, process; the request's id, the record's
    `fields` and its exception where it has them."""

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
    """Standard output, for logging alone: whatever else is written, there or as an error, is a line too."""
    if not isinstance(sys.stdout, _Caught):
        logging.captureWarnings(capture=True)
        sys.stdout = _Caught(sys.stdout, "stdout")
        sys.stderr = _Caught(sys.stderr, "stderr")
        sys.excepthook = _uncaught
        threading.excepthook = _uncaught_in_thread
    return logging.StreamHandler(sys.stdout.inner)


def _line(level: str, logger: str, message: str, *, created: float | None = None, **fields: Any) -> str:
    moment = datetime.now(UTC) if created is None else datetime.fromtimestamp(created, UTC)
    told = {
        "time": moment.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "level": level,
        "logger": logger,
        "message": message,
        "request_id": request_id.get(),
        **fields,
    }
    return json.dumps({name: value for name, value in told.items() if value is not None}, default=str)


class _Caught:
    """A text stream of which every line becomes an object; what lacks its end waits for it."""

    def __init__(self, inner: TextIO, name: str) -> None:
        self.inner = inner
        self._name = name
        self._rest = ""
        self._lock = threading.RLock()

    def write(self, text: str) -> int:
        with self._lock:
            *lines, self._rest = (self._rest + text).replace("\r", "\n").split("\n")
            for line in filter(str.strip, lines):
                self.inner.write(_line("INFO", self._name, line.rstrip()) + "\n")
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        self.inner.flush()

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


def _uncaught(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    told = (kind, error, traceback)
    logging.getLogger("server").critical("the process ends by an error", exc_info=told)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        told = (args.exc_type, args.exc_value, args.exc_traceback)
        name = args.thread.name if args.thread else "unknown"
        logging.getLogger("server").error("the thread %s ended by an error", name, exc_info=told)
