"""Names of models where there are no projects but the caller's own."""

from dataclasses import dataclass
from typing import Any

from server.addressing import Address
from server.auth import Principal


@dataclass(frozen=True)
class Plain:
    """A directory in which a name is a served one. `models`: ServedModels, or what resolves like them."""

    models: Any

    async def find(self, name: str | None, principal: Principal, **_: Any) -> Address:
        return Address(principal, self.models.resolve(name, principal.selected_model))


class AnyModel:
    """Every name is served."""

    def resolve(self, name: str | None, bound: str | None = None) -> str:
        return name or bound or "default"


class Unaddressed:
    """What addressing leaves in a request, passed over."""

    def answer_as(self, name: str) -> None: ...

    def know_as(self, name: str) -> None: ...
