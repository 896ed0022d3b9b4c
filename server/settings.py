"""Steersman's own settings: read once from flags and environment, frozen, passed down."""

import os
import re
from argparse import Namespace
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from platformdirs import user_data_path

from server.limits import RateLimits
from server.redaction import read_patterns
from steering.spec import DEFAULT_ROWS

BEHAVIOR_MODES = ("monitor", "online")  # that a server may have for all requests
INTERACTIONS = ("asked", "all", "none")  # which chat completions are stored
LOG_FORMATS = ("text", "json")  # vLLM's own lines, or an object for each
MOST_TENANTS = 50  # that metrics name
_TENANT = re.compile(r"[a-z0-9_-]{1,64}")
ACCOUNTS = ("off", "closed", "open")  # who may log in: nobody, whom the operator adds, whoever signs up


@dataclass(frozen=True, slots=True)
class Settings:
    """`home` holds the database and the prepared model; sizes are bytes, times seconds; `redact` are regular
    expressions. Limits of 0 are none."""

    home: Path
    database_url: str
    max_body_bytes: int = 16 * 1024 * 1024  # an image of 10 MiB in base64, and more
    key_cache_seconds: float = 2.0
    constraint_seconds: float = 10.0
    steering_rows: int = DEFAULT_ROWS
    steering_wait_seconds: float = 30.0
    steering_safe_dose: float = 1.0
    steering_max_dose: float = 2.0
    behaviors: tuple[str, ...] = ()
    behavior_mode: str = "online"
    observe_requests: int = 10_000
    observe_days: float = 7.0
    interactions: str = "asked"
    interaction_rows: int = 100_000
    interaction_days: float = 30.0
    redact: tuple[str, ...] = ()
    accounts: str = "off"
    adaptive_seconds: float = 60.0
    embeddings_url: str | None = None
    embeddings_key: str | None = field(default=None, repr=False)
    embeddings_model: str | None = None
    embeddings_seconds: float = 60.0
    embeddings_at_once: int = 64
    log_format: str = "text"
    behind_vllm_router: bool = False
    metric_tenants: tuple[str, ...] = ()
    requests_per_minute: int = 0
    tokens_per_minute: int = 0
    concurrent_requests: int = 0
    max_queue: int = 0
    max_queue_seconds: float = 0.0

    @property
    def rates(self) -> RateLimits:
        """Of keys that have none of their own."""
        return RateLimits(self.requests_per_minute, self.tokens_per_minute, self.concurrent_requests)

    @property
    def has_accounts(self) -> bool:
        return self.accounts != "off"

    @classmethod
    def read(cls, args: Namespace | None = None, environ: Mapping[str, str] = os.environ) -> "Settings":
        """Flags win over `STEERSMAN_*` variables, those over defaults."""

        def value(name: str) -> str | None:
            flag = getattr(args, f"steersman_{name}", None)
            return flag if flag is not None else environ.get(f"STEERSMAN_{name.upper()}")

        home = Path(value("home") or user_data_path("steersman")).expanduser().absolute()
        kinds: dict[str, type[int | float]] = {
            "max_body_bytes": int,
            "key_cache_seconds": float,
            "constraint_seconds": float,
            "steering_rows": int,
            "steering_wait_seconds": float,
            "steering_safe_dose": float,
            "steering_max_dose": float,
            "observe_requests": int,
            "observe_days": float,
            "interaction_rows": int,
            "interaction_days": float,
            "adaptive_seconds": float,
            "embeddings_seconds": float,
            "embeddings_at_once": int,
            "requests_per_minute": int,
            "tokens_per_minute": int,
            "concurrent_requests": int,
            "max_queue": int,
            "max_queue_seconds": float,
        }
        numbers = {
            name: _positive(name, kind, text, zero=name in _MAY_BE_ZERO)
            for name, kind in kinds.items()
            if (text := value(name)) is not None
        }
        return cls(
            home=home,
            database_url=value("database_url") or f"sqlite+aiosqlite:///{home / 'steersman.db'}",
            behaviors=tuple(filter(None, (value("behaviors") or "").replace(",", " ").split())),
            behavior_mode=_mode(value("behavior_mode") or "online"),
            interactions=_interactions(value("interactions") or "asked"),
            redact=read_patterns(Path(path).expanduser()) if (path := value("redact")) else (),
            accounts=_accounts(value("accounts") or "off"),
            embeddings_url=_embeddings_url(value("embeddings_url")),
            embeddings_key=environ.get("STEERSMAN_EMBEDDINGS_KEY") or None,  # no flag: others read those
            embeddings_model=value("embeddings_model") or None,
            log_format=_log_format(value("log_format") or "text"),
            behind_vllm_router=bool(getattr(args, "steersman_behind_vllm_router", False)),
            metric_tenants=_tenants(value("metric_tenants") or ""),
            **numbers,  # type: ignore[arg-type]  # each name maps to its own number type
        )


def _mode(text: str) -> str:
    if text not in BEHAVIOR_MODES:
        raise ValueError(
            f"behavior_mode (--behavior-mode) is one of {', '.join(BEHAVIOR_MODES)}, not {text!r}: a request"
            " itself may ask for more"
        )
    return text


def _interactions(text: str) -> str:
    if text not in INTERACTIONS:
        raise ValueError(f"interactions (--interactions) is one of {', '.join(INTERACTIONS)}, not {text!r}")
    return text


def _accounts(text: str) -> str:
    if text not in ACCOUNTS:
        raise ValueError(f"accounts (--accounts) is one of {', '.join(ACCOUNTS)}, not {text!r}")
    return text


def _log_format(text: str) -> str:
    if text not in LOG_FORMATS:
        raise ValueError(f"log_format (--log-format) is one of {', '.join(LOG_FORMATS)}, not {text!r}")
    return text


def _tenants(text: str) -> tuple[str, ...]:
    names = tuple(dict.fromkeys(text.replace(",", " ").split()))
    if len(names) > MOST_TENANTS or any(not _TENANT.fullmatch(name) for name in names):
        raise ValueError(
            f"metric_tenants (--metric-tenants) is at most {MOST_TENANTS} keys or ids of projects, of a-z,"
            f" 0-9, - and _, not {text[:200]!r}"
        )
    return names


def _embeddings_url(text: str | None) -> str | None:
    """As the embedding server's client takes it: its root, with or without /v1."""
    if not text:
        return None
    problem = f"embeddings_url (--embeddings-url) is the root of a server, as http://host:8000, not {text!r}"
    try:
        parsed = urlsplit(text)
        rooted = parsed.port is None or parsed.port > 0
    except ValueError as error:
        raise ValueError(problem) from error
    if parsed.scheme not in {"http", "https"} or not parsed.hostname or not rooted:
        raise ValueError(problem)
    if parsed.query or parsed.fragment or parsed.username is not None or parsed.password is not None:
        raise ValueError(f"{problem}; its key is read from STEERSMAN_EMBEDDINGS_KEY")
    return text.rstrip("/").removesuffix("/v1")


_MAY_BE_ZERO = {
    "steering_wait_seconds",
    "observe_requests",
    "adaptive_seconds",
    "requests_per_minute",
    "tokens_per_minute",
    "concurrent_requests",
    "max_queue",
    "max_queue_seconds",
}


def _positive(name: str, kind: type[int] | type[float], text: str, *, zero: bool = False) -> int | float:
    try:
        number = kind(text)
    except ValueError:
        number = kind(-1)
    if not 0 < number < float("inf") and not (zero and number == 0):
        raise ValueError(f"{name} (--{name.replace('_', '-')}) must be a positive number, not {text!r}")
    return number
