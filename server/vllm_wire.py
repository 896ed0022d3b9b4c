"""vLLM's chat and completion requests with Axionic's fields, strict about what nobody consumes.

The models derive from vLLM's, so one validation pass serves both and vLLM's serving code takes them as they
are.
"""

from collections.abc import AsyncGenerator, Iterator, Sequence
from types import MappingProxyType
from typing import Annotated, Any, Self

from pydantic import (
    ConfigDict,
    Field,
    PrivateAttr,
    model_validator,
)
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest as VllmCompletionRequest
from vllm.renderers.chat_utils import ChatCompletionMessageParam
from vllm.sampling_params import SamplingParams

from policies.constraint import (
    Constraint,
)
from server import vllm_tools
from server.marks import Marks, marked, told_session
from server.media_parts import PlacedPart, media_parts
from server.vllm_beam import BeamParams
from server.vllm_planned import Planned
from server.vllm_tools import ToolRules, Tools, bounded
from server.wire import (
    MaxTokens,
    StoredFields,
)


class ChatRequest(StoredFields, Planned, ChatCompletionRequest):
    model_config = ConfigDict(extra="forbid")

    least = MappingProxyType({"messages": ({"role": "user", "content": "?"},)})

    messages: Annotated[list[ChatCompletionMessageParam], Field(min_length=1)]
    max_completion_tokens: MaxTokens | None = None
    tools: Tools | None = None

    @model_validator(mode="before")
    @classmethod
    def _chosen(cls, data: Any) -> Any:
        return vllm_tools.chosen(data) if isinstance(data, dict) else data

    @model_validator(mode="after")
    def _checked(self) -> Self:
        vllm_tools.check(self.tools or ())
        return self

    _account_id: str = PrivateAttr("")

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.logprobs)

    @property
    def stored_unasked(self) -> bool:
        """Whether a request that says nothing of `store` is stored, where anything is."""
        return False

    def placed_media(self) -> Iterator[PlacedPart]:
        return media_parts(self.messages, "messages")

    def scored(self) -> dict[str, Any]:
        """The changes that make a response carry its tokens' log-probabilities."""
        return {} if self.logprobs else {"logprobs": True, "top_logprobs": 0}

    @property
    def texts(self) -> bool:
        """Whether every piece of an answer has an id, a role and a text."""
        return False

    def of_account(self, account_id: str) -> None:
        """Whose completions its choices are."""
        self._account_id = account_id

    def as_events(self, stream: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        return marked(stream, self._marks)

    @property
    def _marks(self) -> Marks:
        return Marks(self._account_id, told_session(self.session_id), self.model, texts=self.texts)

    def prompts(self) -> list[dict[str, Any]]:
        """Each prompt of this request, as changes to a copy of it."""
        return [{}]

    def take_tools(
        self, rules: ToolRules, beside: Sequence[tuple[Constraint, str]]
    ) -> list[tuple[Constraint, str]]:
        """The schemas that calls are held to, and the fields they came from; `beside` is what
        `take_constraints` gave. Raises InvalidRequest and NotSupported for what would not take effect."""
        return vllm_tools.held(self, rules, beside) if self.tools_given else []

    def as_body(self, response: Any) -> dict[str, Any]:
        body = super().as_body(response)
        for choice in body["choices"]:
            if choice["message"].get("tool_calls"):  # vLLM says "" beside forced ones
                choice["message"]["content"] = choice["message"]["content"] or None
        return self._marks.body(body)

    def to_sampling_params(self, max_tokens: int, default_sampling_params: dict[str, Any]) -> SamplingParams:
        params = super().to_sampling_params(max_tokens, default_sampling_params)
        if self.tools_given:
            params.structured_outputs = bounded(params.structured_outputs)
        return params

    def to_beam_search_params(self, max_tokens: int, _defaults: dict[str, Any]) -> BeamParams:
        params = super().to_beam_search_params(max_tokens, _defaults)
        if self.tools_given:
            params.structured_outputs = bounded(params.structured_outputs)
        return params


class CompletionRequest(Planned, VllmCompletionRequest):
    model_config = ConfigDict(extra="forbid")

    least = MappingProxyType({"prompt": "?"})

    max_tokens: MaxTokens | None = 16

    @property
    def wants_logprobs(self) -> bool:
        return self.logprobs is not None

    def scored(self) -> dict[str, Any]:
        return {} if self.wants_logprobs else {"logprobs": 0}

    def prompts(self) -> list[dict[str, Any]]:
        prompt = self.prompt
        several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        return [{"prompt": one} for one in prompt] if several else [{}]
