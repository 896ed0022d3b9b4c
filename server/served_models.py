"""The names under which this server answers."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from server.errors import NotFound
from server.wire import HostedModel


@dataclass(frozen=True, slots=True)
class ServedModels:
    """The names under which this server answers: base model, its aliases, LoRA adapters."""

    serving: Any
    created: int
    modalities: frozenset[str] = frozenset()  # what they take beside text: image, video, audio

    @property
    def default(self) -> str:
        return self.bases[0]

    @property
    def bases(self) -> list[str]:
        return [str(path.name) for path in self.serving.base_model_paths]

    @property
    def names(self) -> list[str]:
        return [*self.bases, *self.serving.lora_requests]

    @property
    def root(self) -> str:
        return str(self.serving.base_model_paths[0].model_path)

    @property
    def adapters(self) -> list[str]:
        return list(self.serving.lora_requests)

    @property
    def max_model_len(self) -> int:
        return int(self.serving.model_config.max_model_len)

    def hosted(self, base_url: str) -> list[HostedModel]:
        created = datetime.fromtimestamp(self.created, UTC).isoformat()
        return [
            HostedModel(
                id=name,
                name=name,
                base_url=base_url,
                created_at=created,
                is_default=name == self.default,
                hf_model_name=self.root,
            )
            for name in self.names
        ]

    def graph(self) -> list[dict[str, Any]]:
        """One node per decoder block, in the order of the residual stream."""
        config = self.serving.model_config.hf_text_config
        return [
            {"name": f"layers.{index}", "layer": index, "hidden_size": config.hidden_size}
            for index in range(config.num_hidden_layers)
        ]

    def resolve(self, name: str | None, bound: str | None = None) -> str:
        """The served name for what a client wrote. None and "default" mean the key's bound model.

        Raises NotFound, listing what is served.
        """
        if name is None or name == "default":
            name = bound if bound in self.names else self.default
        if name not in self.names:
            raise NotFound(
                f"model '{name}' is not served here; served: {', '.join(self.names)}",
                param="model",
                code="model_not_found",
            )
        return name
