"""The routes that take policies, over Steersman's own serving, on an engine that answers from a script."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import httpx
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponse

from policies.sampling import EngineFacts
from policies.verdict import judge
from server.interaction_log import InteractionLog, Keep
from server.policy_runs import PolicyRuns
from server.routes.native import router as native
from server.routes.openai import router as openai
from server.routes.policies import router as policies
from server.sandbox import SandboxOff
from server.served_models import ServedModels
from server.streams import as_stream
from server.vllm_serving import Serving
from server.vllm_wire import ChatRequest, CompletionRequest
from tests.server.apps import routes_alone
from tests.server.directories import Plain
from tests.server.steering_app import SignedIn

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RUN, SAMPLING = "/policies/run", "/sampling/generate"

# What becomes of a request: a text for each of its choices, (text, mean log-probability), or an error.
Text = str | tuple[str, float]
Script = Callable[[Any], Sequence[Text]]


def always(*texts: Text) -> Script:
    """The same texts for every request, round and round."""
    return lambda request: [texts[index % len(texts)] for index in range(request.n)]


def in_turn(*texts: Text) -> Script:
    """One text after the other, over all requests; the last one goes on."""
    left = list(texts)
    return lambda request: [left.pop(0) if len(left) > 1 else left[0] for _ in range(request.n)]


class Engine:
    """vLLM's serving objects in one; each word is a token, and `requests` are what it was asked."""

    model_config = SimpleNamespace(max_model_len=512)
    base_model_paths = (SimpleNamespace(name="base", model_path="org/base"),)

    def __init__(self, script: Script, lora: Sequence[str] = ()) -> None:
        self.script, self.requests = script, list[Any]()
        self.lora_requests = dict.fromkeys(lora)

    async def create_chat_completion(self, request: ChatRequest, raw: Any) -> Any:
        return self._answer(request, ChatCompletionResponse, _chat_choice)

    async def create_completion(self, request: CompletionRequest, raw: Any) -> Any:
        return self._answer(request, CompletionResponse, _choice)

    def _answer(self, request: Any, response: Any, choice: Callable[..., dict[str, Any]]) -> Any:
        self.requests.append(request)
        given = [text if isinstance(text, tuple) else (text, None) for text in self.script(request)]
        made = [choice(index, request, *text) for index, text in enumerate(given)]
        count = sum(len(each["token_ids"]) for each in made)
        usage = {"prompt_tokens": 7, "completion_tokens": count, "total_tokens": 7 + count}
        for each in made if not request.return_token_ids else ():
            each["token_ids"] = None
        answer = response(model="base", choices=made, usage=usage)
        if not request.stream:
            return answer
        return as_stream(answer, include_usage=bool(request.stream_options))


def _shared(index: int, request: Any, text: str) -> tuple[list[str], dict[str, Any]]:
    words = text.split() or [""]
    cut = request.max_tokens is not None and len(words) > request.max_tokens
    words = words[: request.max_tokens] if cut else words
    ids = list(range(len(words)))
    return words, {"index": index, "finish_reason": "length" if cut else "stop", "token_ids": ids}


def _chat_choice(index: int, request: Any, text: str, logprob: float | None) -> dict[str, Any]:
    words, choice = _shared(index, request, text)
    choice["message"] = {"role": "assistant", "content": " ".join(words)}
    if request.logprobs:
        content = [{"token": word, "logprob": -1.0 if logprob is None else logprob} for word in words]
        choice["logprobs"] = {"content": content}
    return choice


def _choice(index: int, request: Any, text: str, logprob: float | None) -> dict[str, Any]:
    words, choice = _shared(index, request, text)
    choice["text"] = " ".join(words)
    if request.logprobs is not None:
        values = [-1.0 if logprob is None else logprob] * len(words)
        choice["logprobs"] = {"token_logprobs": values, "tokens": words}
    return choice


class Checker:
    """Every constraint compiles."""

    async def check(self, constraint: Any, field: str) -> None:
        pass


def raw_request() -> Any:
    """Of an account whose key is bound to no model."""
    principal = SimpleNamespace(selected_model=None, account_id="me")
    return SimpleNamespace(state=SimpleNamespace(principal=principal), headers={})


def serving(engine: Engine, *, facts: EngineFacts | None = None) -> Serving:
    return Serving(
        chat=engine,
        completion=engine,
        models=ServedModels(engine, created=1),
        checker=Checker(),
        facts=facts or EngineFacts(),
        has_chat_template=True,
        keep_alive=0,
        steering=None,
        unsteerable="the engine is a script",
    )


def interaction_log(which: Keep = Keep.ASKED) -> InteractionLog:
    """Without a database, for requests that do not ask to be stored."""
    return InteractionLog(None, which=which, most=0, days=1)


def policy_runs(served: Serving) -> PolicyRuns:
    return PolicyRuns(served, Checker(), _judged_here, SandboxOff("off"))


async def _judged_here(texts: Any, policy: Any, *, masked_grammar: bool = True, **more: Any) -> Any:
    return [judge(text, policy, masked_grammar=masked_grammar) for text in texts]


@asynccontextmanager
async def opened(
    engine: Engine, *, facts: EngineFacts | None = None, stored: Any = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client of the routes."""
    app, served = routes_alone(openai, native, policies), serving(engine, facts=facts)
    app.state.steersman = SimpleNamespace(
        serving=served,
        policy_runs=policy_runs(served),
        policies=stored,
        interaction_log=interaction_log(),
        directory=Plain(served.models),
    )
    transport = httpx.ASGITransport(SignedIn(app))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield http


def chat(**more: Any) -> dict[str, Any]:
    """A body of /v1/chat/completions."""
    return {"messages": [{"role": "user", "content": "Name a fruit."}], "max_tokens": 16, **more}
