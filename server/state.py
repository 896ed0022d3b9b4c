"""What the routes of one API process share, made once at start: `request.app.state.steersman`."""

from dataclasses import dataclass

from server.auth import KeyRing
from server.constraints import ConstraintChecker
from server.judge import JudgeProcess
from server.settings import Settings
from server.store import Store
from server.usage import UsageMeter
from server.vllm_serving import ServedModels, Serving


@dataclass(frozen=True, slots=True)
class ServerState:
    settings: Settings
    store: Store
    keyring: KeyRing
    meter: UsageMeter
    models: ServedModels
    checker: ConstraintChecker
    serving: Serving
    judge: JudgeProcess
