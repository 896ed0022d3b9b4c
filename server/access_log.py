"""One line for each request: where machines read logs, for uvicorn's own has neither id nor duration."""

import logging
from dataclasses import dataclass

logger = logging.getLogger("server.access")


@dataclass(frozen=True, slots=True)
class AccessLog:
    """`silent` are paths whose requests are not told: probes ask every few seconds."""

    silent: frozenset[str] = frozenset()

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
