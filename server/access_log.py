"""One line for each request: where machines read logs, for uvicorn's own has neither id nor duration."""

import logging
from argparse import Namespace
from dataclasses import dataclass
from typing import Self

from server.settings import Settings

logger = logging.getLogger("server.access")


@dataclass(frozen=True, slots=True)
class AccessLog:
    """`silent` are paths whose requests are not told: probes ask every few seconds."""

    silent: frozenset[str] = frozenset()

    @classmethod
    def of(cls, settings: Settings, args: Namespace) -> Self | None:
        """None in text, where uvicorn writes its own. vLLM's flags for that one are heard here too."""
        if settings.log_format != "json" or args.disable_uvicorn_access_log:
            return None
        silent = (args.disable_access_log_for_endpoints or "").split(",")
        return cls(frozenset(filter(None, map(str.strip, silent))))

    def tell(self, path: str, method: str, route: str, status: int, seconds: float) -> None:
        """`route` is the template, so that no line has what clients put into paths."""
        if path not in self.silent:
            fields = {
                "method": method,
                "route": route,
                "status": status,
                "duration_seconds": round(seconds, 6),
            }
            logger.info("%s %s %d", method, route, status, extra={"fields": fields})
