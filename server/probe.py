"""Whether this process should be sent requests, for whoever routes them."""

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from server.drain import Drain


class Serving(StrEnum):
    READY = "ready"
    LOADING = "loading"
    DRAINING = "draining"
    BROKEN = "broken"


class Engine(Protocol):
    """vLLM's engine client."""

    @property
    def errored(self) -> bool: ...


class Listed(Protocol):
    """The models that are served."""

    @property
    def names(self) -> list[str]: ...


@dataclass(frozen=True, slots=True)
class Probe:
    """Of one API process. The database is not asked: all replicas share it, and would go with it at once."""

    drain: Drain
    engine: Engine
    models: Listed

    def serving(self) -> Serving:
        # First, since a stopped engine looks dead.
        if self.drain.stopping:
            return Serving.DRAINING
        if self.engine.errored:
            return Serving.BROKEN
        return Serving.READY if self.models.names else Serving.LOADING
