"""The seam between requests and vLLM's engine: specs, salts, and calls into the workers of a fake one."""

import asyncio
import gc
from collections.abc import AsyncGenerator
from types import SimpleNamespace

import numpy as np
import pytest
from vllm.exceptions import VLLMValidationError
from vllm.inputs import tokens_input
from vllm.sampling_params import SamplingParams
from vllm.v1.engine.exceptions import EngineDeadError

from policies.steering import SteeringEntry
from server.applied import Counted
from server.auth import OPERATOR, Principal, current_principal
from server.errors import SteersmanError, Unavailable
from server.vllm_steering import SteeringEngine, current_spec, during, prompt_end, steered
from server.vllm_wire import ChatRequest, CompletionRequest
from steering.layout import NEVER_SEEN
from steering.spec import (
    CAPTURE_KEY,
    RESERVED_KEYS,
    STEERING_KEY,
    CaptureSpec,
    Phase,
    SteeringSpec,
    Term,
    Tokens,
)

SPEC = SteeringSpec((Term("d" * 64, (3,)),), trace="t")
OTHER = SteeringSpec((Term("e" * 64, (3,)),), trace="t")
RELATIVE = SteeringSpec((Term("d" * 64, (3,), tokens=Tokens(Phase.GENERATED)),), trace="t")


class Sent:
    """Stands in for the engine's `generate`; keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[dict, SamplingParams, str, tuple, dict]] = []
        self.contexts: list[SteeringSpec | None] = []

    async def generate(self, prompt, params, request_id, *args, **kwargs) -> AsyncGenerator[int, None]:
        self.contexts.append(current_spec.get())
        self.calls.append((prompt, params, request_id, args, kwargs))
        yield 1

    def last(self) -> tuple[dict, SamplingParams]:
        prompt, params, *_ = self.calls[-1]
        return prompt, params


async def drained(stream) -> list:
    return [one async for one in stream]


async def asked(sent: Sent, spec: SteeringSpec | None, prompt: dict, params=None, end: int | None = None):
    """What the engine is called with for `prompt` under `spec`."""
    params = params or SamplingParams()
    tokens = current_spec.set(spec), prompt_end.set(end)
    try:
        stream = steered(sent.generate)(prompt, params, "id")
    finally:
        prompt_end.reset(tokens[1])
        current_spec.reset(tokens[0])
    await drained(stream)
    return sent.last()


@pytest.mark.parametrize("spec", [None, SteeringSpec((), trace="t")])
async def test_an_unsteered_request_passes_untouched(spec):
    """Without a spec, or with one that does nothing, prompt and parameters are the very objects given."""
    sent, prompt, params = Sent(), tokens_input([1, 2]), SamplingParams(extra_args={"a": 1})
    got_prompt, got_params = await asked(sent, spec, prompt, params)
    assert got_prompt is prompt
    assert got_params is params
    assert "cache_salt" not in prompt


async def test_a_steered_request_carries_its_spec():
    """The spec stands beside the other arguments in a copy; what the caller gave stays as it was."""
    sent, prompt, params = Sent(), tokens_input([1, 2]), SamplingParams(extra_args={"a": 1}, top_k=7)
    got_prompt, got_params = await asked(sent, SPEC, prompt, params)
    assert SteeringSpec.decode(got_params.extra_args[STEERING_KEY]) == SPEC
    assert (got_params.extra_args["a"], got_params.top_k) == (1, 7)
    assert params.extra_args == {"a": 1}
    assert "cache_salt" not in prompt
    assert got_prompt["prompt_token_ids"] == [1, 2]
    assert got_prompt["cache_salt"] == SPEC.cache_salt(None, 2)


async def test_a_project_s_prompts_are_cached_apart():
    """By a salt of its own, with or without one of its client's, steered or not; the operator has none."""

    async def salt(account_id: str, spec: SteeringSpec | None = None, own: str | None = None) -> str | None:
        token = current_principal.set(Principal("key", account_id, None, None))
        try:
            prompt, _ = await asked(Sent(), spec, tokens_input([1, 2], cache_salt=own))
        finally:
            current_principal.reset(token)
        return prompt.get("cache_salt")

    salts = [await salt(who, spec, own) for who in "ab" for spec in (None, SPEC) for own in (None, "x")]
    assert len(set(salts)) == 8
    assert salts[0] == await salt("a")
    assert await salt(OPERATOR) is None
    assert await salt(OPERATOR, own="x") == "x"


async def test_everything_else_passes_on():
    """Further arguments reach the engine as they were."""
    sent = Sent()
    token = current_spec.set(SPEC)
    stream = steered(sent.generate)(tokens_input([1]), SamplingParams(), "id", 5, lora_request="l")
    current_spec.reset(token)
    await drained(stream)
    assert sent.calls[-1][2:] == ("id", (5,), {"lora_request": "l"})


async def test_salts_keep_blocks_apart():
    """Same effect, same salt; another effect, another caller's salt, or another length where it matters:
    another salt. No salt names its vector or breaks vLLM's rules for salts."""
    sent = Sent()

    async def salt(spec: SteeringSpec, tokens: list[int], own: str | None = None, end: int | None = None):
        prompt, _ = await asked(sent, spec, tokens_input(tokens, cache_salt=own), end=end)
        return prompt["cache_salt"]

    plain = await salt(SPEC, [1, 2])
    assert plain == await salt(SteeringSpec(SPEC.terms, trace="another"), [1, 2])
    assert plain == await salt(SPEC, [1, 2, 3]), "the length does not matter to this spec"
    assert len({plain, await salt(OTHER, [1, 2]), await salt(SPEC, [1, 2], "mine")}) == 3
    assert await salt(SPEC, [1, 2], "mine") != await salt(SPEC, [1, 2], "yours")
    assert await salt(RELATIVE, [1, 2]) != await salt(RELATIVE, [1, 2, 3])
    assert await salt(RELATIVE, [1, 2, 3], end=2) == await salt(RELATIVE, [1, 2])
    assert len(plain) <= 128
    assert plain.startswith("steered-")
    assert plain.removeprefix("steered-").isalnum()


@pytest.mark.parametrize("spec", [None, SPEC])
@pytest.mark.parametrize("key", sorted(RESERVED_KEYS))
async def test_a_client_cannot_bring_a_spec(spec, key):
    """On whatever route: it would be steered without a salt of its own, and by no limit's leave."""
    sent, params = Sent(), SamplingParams(extra_args={key: SPEC.encode()})
    with pytest.raises(VLLMValidationError, match=f"{key} is set by the server") as refused:
        await asked(sent, spec, tokens_input([1, 2]), params)
    assert refused.value.parameter == "vllm_xargs"
    assert not sent.calls


@pytest.mark.parametrize("spec", [None, SPEC])
async def test_a_client_cannot_bring_our_salt(spec):
    """A plain request with the salt of a steered one would read its blocks, or leave it its own."""
    with pytest.raises(VLLMValidationError, match="begin with steered-") as refused:
        await asked(Sent(), spec, tokens_input([1, 2], cache_salt=SPEC.cache_salt(None)))
    assert refused.value.parameter == "cache_salt"


async def test_a_prompt_of_embeddings():
    """It is steered too, and as long as it has rows."""
    prompt = {"type": "embeds", "prompt_embeds": np.zeros((3, 8))}
    got, params = await asked(Sent(), RELATIVE, prompt)
    assert got["cache_salt"] == RELATIVE.cache_salt(None, 3)
    assert STEERING_KEY in params.extra_args


async def test_a_beams_prompt_ends_where_it_began():
    """A beam's own tokens are generated ones: the spec says where its prompt ended."""
    _, params = await asked(Sent(), SPEC, tokens_input([1, 2, 3, 4]), end=2)
    assert SteeringSpec.decode(params.extra_args[STEERING_KEY]).prompt_tokens == 2
    _, params = await asked(Sent(), SPEC, tokens_input([1, 2, 3, 4]))
    assert SteeringSpec.decode(params.extra_args[STEERING_KEY]).prompt_tokens is None


async def test_the_context_of_the_call_counts():
    """The spec is taken when `generate` is called, not when its outputs are read, wherever that is."""
    sent = Sent()
    generate = steered(sent.generate)
    with during(_applied(SPEC)):
        stream = generate(tokens_input([1]), SamplingParams(), "id")
    with during(_applied(OTHER)):
        await asyncio.create_task(drained(stream))
    assert SteeringSpec.decode(sent.last()[1].extra_args[STEERING_KEY]) == SPEC
    with during(_applied(SPEC)):
        late = drained(generate(tokens_input([1]), SamplingParams(), "id"))
    await late
    assert STEERING_KEY in sent.last()[1].extra_args


async def test_requests_do_not_see_each_others_specs():
    """Of requests that run at once each sends its own spec; one without sends none."""
    sent = Sent()
    generate = steered(sent.generate)

    async def request(spec: SteeringSpec | None, name: str) -> None:
        with during(_applied(spec) if spec else None):
            await asyncio.sleep(0)
            await asyncio.gather(
                *(drained(generate(tokens_input([1]), SamplingParams(), name)) for _ in range(2))
            )

    await asyncio.gather(request(SPEC, "a"), request(None, "b"), request(OTHER, "c"))
    for _, params, name, *_ in sent.calls:
        given = (params.extra_args or {}).get(STEERING_KEY)
        expected = {"a": SPEC, "b": None, "c": OTHER}[name]
        assert (given and SteeringSpec.decode(given)) == expected
    assert current_spec.get() is None


def _applied(spec: SteeringSpec) -> SimpleNamespace:
    released: list[bool] = []
    return SimpleNamespace(spec=spec, release=lambda: released.append(True), released=released)


def test_what_was_applied_is_released_at_the_end():
    """After the block, and after an exception in it; a stream that goes on keeps it."""
    ended, failed, streaming = _applied(SPEC), _applied(SPEC), _applied(SPEC)
    with during(ended):
        assert current_spec.get() == SPEC
    with pytest.raises(ZeroDivisionError), during(failed):
        1 / 0  # noqa: B018
    with during(streaming) as kept:
        kept.open = True
    assert (ended.released, failed.released, streaming.released) == ([True], [True], [])
    assert current_spec.get() is None


def test_an_unsteered_request_within_a_steered_one():
    """A block without steering hides the outer one's spec, and gives it back."""
    with during(_applied(SPEC)):
        with during(None):
            assert current_spec.get() is None
        assert current_spec.get() == SPEC


class Client:
    """An engine client with `engines` engines of two ranks each; `worker` answers by method."""

    def __init__(self, engines: int = 1, **worker) -> None:
        self.worker, self.engines = worker, engines
        self.calls: list[tuple[str, tuple]] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.sent = Sent()
        self.generate = self.sent.generate
        parallel = SimpleNamespace(data_parallel_size=engines)
        model = SimpleNamespace(max_logprobs=20)
        self.vllm_config = SimpleNamespace(parallel_config=parallel, lora_config=None, model_config=model)
        self.engine_core = SimpleNamespace()
        if engines > 1:
            self.engine_core.call_utility_all_async = self._all

    async def collective_rpc(self, method, args=()):
        return (await self._all("collective_rpc", method, None, args, None))[0]

    async def _all(self, utility, method, limit, args, kwargs):
        assert (utility, limit, kwargs) == ("collective_rpc", None, None)
        self.calls.append((method, tuple(args)))
        await self.gate.wait()
        await asyncio.sleep(0)
        answer = self.worker[method]
        return [[answer(engine, rank, *args) for rank in range(2)] for engine in range(self.engines)]


def opened(client: Client) -> SteeringEngine:
    return SteeringEngine(client, client.generate)


def answers(*replies: list):
    """Evidence of each engine in turn, the same for whatever trace; the second rank says nothing useful."""

    def evidence(engine: int, rank: int, traces: list[str]) -> dict[str, list]:
        return {trace: [9, 9, "rank 1"] if rank else list(replies[engine]) for trace in traces}

    return evidence


async def test_loading_and_unloading():
    """Bytes and digests reach every rank; where one did not load, none has, and the error says why."""
    client = Client(
        steersman_load=lambda engine, rank, digest, blob, owner: (
            "table full" if rank and digest == "bad" else None
        ),
        steersman_unload=lambda engine, rank, digests, owner: None,
    )
    engine = opened(client)
    await engine.load("good", b"x")
    with pytest.raises(SteersmanError, match="did not load the vector: table full"):
        await engine.load("bad", b"y")
    await engine.unload(("good", "bad"))
    (*_, owner), *_ = (arguments for _, arguments in client.calls)
    assert client.calls == [
        ("steersman_load", ("good", b"x", owner)),
        ("steersman_load", ("bad", b"y", owner)),
        ("steersman_unload", (["bad"], owner)),
        ("steersman_unload", (["good", "bad"], owner)),
    ]


async def test_loading_into_several_engines():
    """One that did not load is an error, though the first did."""
    client = Client(
        2,
        steersman_load=lambda engine, rank, *_: "table full" if (engine, rank) == (1, 1) else None,
        steersman_unload=lambda *_: None,
    )
    with pytest.raises(SteersmanError, match="did not load the vector: table full"):
        await opened(client).load("d", b"x")
    assert client.calls[-1][0] == "steersman_unload"


async def test_a_rank_that_fails_to_load():
    """Where the call itself raises, the others may have the vector: none keeps it."""
    client = Client(steersman_load=lambda *_: 1 / 0, steersman_unload=lambda *_: None)
    with pytest.raises(ZeroDivisionError):
        await opened(client).load("d", b"x")
    await asyncio.sleep(0.01)
    assert [(method, args[0]) for method, args in client.calls][1:] == [("steersman_unload", ["d"])]


async def test_facts_and_usage_are_of_the_first_rank():
    """What all ranks agree on is asked of one."""
    client = Client(
        steersman_facts=lambda engine, rank: {"rank": rank},
        steersman_usage=lambda engine, rank: {"free_lines": 5 + rank},
    )
    assert await opened(client).facts() == {"rank": 0}
    assert await opened(client).usage() == {"free_lines": 5}


async def test_evidence():
    """Prompt and generated tokens as the worker counted them."""
    client = Client(steersman_evidence=answers([4, 2, None, []]))
    assert await opened(client).evidence("t") == Counted(4, 2)


async def test_evidence_of_an_unsteered_request():
    """Where the worker did nothing the request is Unavailable, with its reason."""
    client = Client(steersman_evidence=answers([0, 0, "vector d is not resident", []]))
    with pytest.raises(Unavailable, match="ran unsteered: vector d is not resident") as refused:
        await opened(client).evidence("t")
    assert refused.value.retry_after == 1


async def test_requests_that_end_together_share_a_call():
    """While one RPC is on its way the next collects all that end meanwhile, and each gets its own answer."""
    client = Client(
        steersman_evidence=lambda engine, rank, traces: {trace: [int(trace), 0, None, []] for trace in traces}
    )
    engine = opened(client)
    client.gate.clear()
    first = asyncio.create_task(engine.evidence("1"))
    await asyncio.sleep(0.01)
    others = [asyncio.create_task(engine.evidence(str(number))) for number in range(2, 40)]
    await asyncio.sleep(0.01)
    client.gate.set()
    counted = await asyncio.gather(first, *others)
    assert [each.prompt_tokens for each in counted] == list(range(1, 40))
    assert [len(args[0]) for _, args in client.calls] == [1, 38]
    assert await engine.evidence("50") == Counted(50, 0)


async def test_a_failed_call_reaches_all_who_wait():
    """Each waiting request gets the failure, and later ones are asked anew."""
    client = Client(steersman_evidence=lambda engine, rank, traces: 1 / 0)
    engine = opened(client)
    failed = await asyncio.gather(*(engine.evidence(name) for name in "abc"), return_exceptions=True)
    assert [type(each) for each in failed] == [ZeroDivisionError] * 3
    client.worker["steersman_evidence"] = answers([1, 1, None, []])
    assert await engine.evidence("d") == Counted(1, 1)


@pytest.mark.parametrize("fails", [False, True])
async def test_a_client_that_leaves_keeps_nobody_waiting(fails):
    """One request cancelled while evidence is fetched: the others of the same call get theirs."""

    def evidence(engine, rank, traces):
        if fails:
            raise ConnectionError("engine gone")
        return {trace: [1, 2, None, []] for trace in traces}

    client = Client(steersman_evidence=evidence)
    engine = opened(client)
    client.gate.clear()
    tasks = [asyncio.create_task(engine.evidence(name)) for name in "abc"]
    await asyncio.sleep(0.01)
    tasks[0].cancel()
    await asyncio.sleep(0.01)
    client.gate.set()
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 1)
    assert isinstance(done[0], asyncio.CancelledError)
    if fails:
        assert [type(each) for each in done[1:]] == [ConnectionError] * 2
    else:
        assert done[1:] == [Counted(1, 2)] * 2
    engine._client.worker["steersman_evidence"] = answers([1, 1, None, []])
    assert await asyncio.wait_for(engine.evidence("d"), 1) == Counted(1, 1)


@pytest.mark.parametrize("engines", [1, 2])
async def test_an_engine_that_has_stopped_is_unavailable(engines):
    """Whatever is asked of it: a client may come back, and is told when."""

    def dead(*_: object) -> None:
        raise EngineDeadError

    client = Client(engines, steersman_evidence=dead, steersman_load=dead, steersman_captured=dead)
    engine = opened(client)
    for asked_for in (engine.evidence("t"), engine.load("d", b""), engine.capture([5], [(0, 1)], [0])):
        with pytest.raises(Unavailable, match="the engine has stopped") as refused:
            await asked_for
        assert refused.value.retry_after


async def test_an_answer_that_lacks_a_trace_keeps_nobody_waiting():
    """Should a worker forget a trace, those who wait are told of the failure."""
    client = Client(steersman_evidence=lambda engine, rank, traces: {})
    with pytest.raises(KeyError):
        await asyncio.wait_for(opened(client).evidence("a"), 1)


@pytest.mark.parametrize(
    ("replies", "counted"),
    [
        ([[0, 0, NEVER_SEEN, []], [4, 2, None, []]], Counted(4, 2)),
        ([[4, 2, None, []], [0, 0, NEVER_SEEN, []]], Counted(4, 2)),
        ([[4, 2, None, []], [3, 1, None, []]], Counted(7, 3)),
        ([[0, 0, NEVER_SEEN, []], [0, 0, NEVER_SEEN, []]], NEVER_SEEN),
        ([[4, 2, None, []], [0, 0, "not resident", []]], "not resident"),
        ([[0, 0, "not resident", []], [4, 2, None, []]], "not resident"),
        ([[0, 0, NEVER_SEEN, []], [0, 0, "not resident", []]], "not resident"),
    ],
)
async def test_several_engines(replies, counted):
    """A request ran on one of them, candidates on several: who never saw it does not count, and one that
    could not steer its part makes the whole unsteered."""
    client = Client(len(replies), steersman_evidence=answers(*replies))
    if isinstance(counted, str):
        with pytest.raises(Unavailable, match=counted):
            await opened(client).evidence("t")
    else:
        assert await opened(client).evidence("t") == counted


async def test_several_engines_behind_another_balancer():
    """A client that knows only its own engine asks that one."""
    client = Client(2, steersman_evidence=answers([4, 2, None, []], [3, 1, None, []]))
    del client.engine_core.call_utility_all_async
    assert await opened(client).evidence("t") == Counted(4, 2)


async def test_an_aborted_requests_evidence_is_dropped(caplog):
    """The worker is asked so that it forgets; nobody waits, and no failure is complained of."""
    client = Client(steersman_evidence=answers([0, 0, "never saw it", []]))
    engine = opened(client)
    engine.forget("gone")
    await asyncio.sleep(0.01)
    client.worker["steersman_evidence"] = lambda engine, rank, traces: 1 / 0
    engine.forget("gone too")
    await asyncio.sleep(0.01)
    gc.collect()
    assert client.calls == [("steersman_evidence", (["gone"],)), ("steersman_evidence", (["gone too"],))]
    assert not caplog.records


def test_forgetting_after_the_end():
    """Without a loop there is nothing to tell, and nothing is raised."""

    async def made() -> SteeringEngine:
        return opened(Client())

    asyncio.run(made()).forget("gone")


MEANS = np.arange(12, dtype=np.float32).reshape(2, 2, 3)
FOUND = [[2, 2, 3], MEANS.tobytes(), np.arange(4, dtype=np.float32).tobytes()]


async def test_captured_states():
    """A capture is one unsteered prefill past the prefix cache, read back under its own name."""
    client = Client(steersman_captured=lambda engine, rank, identity: FOUND)
    with during(_applied(SPEC)):
        states = await opened(client).capture([5, 6, 7], [(0, 1), (1, 3)], range(2))
    assert np.array_equal(states.means, MEANS)
    assert states.norms.tolist() == [[0, 1], [2, 3]]
    prompt, params, request_id, _, options = client.sent.calls[0]
    spec = CaptureSpec.decode(params.extra_args[CAPTURE_KEY])
    assert (spec.layers, spec.spans) == ((0, 1), ((0, 1), (1, 3)))
    assert STEERING_KEY not in params.extra_args
    assert (params.max_tokens, params.skip_reading_prefix_cache) == (1, True)
    assert prompt["prompt_token_ids"] == [5, 6, 7]
    assert request_id.endswith(spec.id)
    assert options == {}
    assert client.calls == [("steersman_captured", (spec.id,))]


async def test_a_short_capture_is_an_error():
    """States that are missing are never a shorter array."""
    client = Client(steersman_captured=lambda engine, rank, identity: [4])
    with pytest.raises(SteersmanError, match="4 states are missing"):
        await opened(client).capture([5, 6], [(0, 2)], [0])


async def test_a_capture_without_room_can_be_tried_again():
    """A worker that took on no capture at all was full, which passes."""
    client = Client(steersman_captured=lambda engine, rank, identity: None)
    with pytest.raises(Unavailable, match="no room"):
        await opened(client).capture([5, 6], [(0, 2)], [0])


async def test_a_capture_runs_where_its_result_is_read():
    """Of several engines, on the first: its workers' answers are those that come back."""
    client = Client(2, steersman_captured=lambda engine, rank, identity: FOUND)
    await opened(client).capture([5], [(0, 1)], [0])
    assert client.sent.calls[0][4] == {"data_parallel_rank": 0}


class Waiting(Client):
    """Its requests never end."""

    def __init__(self, **worker) -> None:
        super().__init__(**worker)
        self.generate = self._waiting

    async def _waiting(self, *args, **options):
        await asyncio.Event().wait()
        yield


@pytest.mark.parametrize("ask", ["score", "likeliest", "capture"])
async def test_a_cancelled_request_leaves_nothing_in_the_worker(ask):
    """Its trace and its captured states are asked for once more, so that the worker forgets them."""
    client = Waiting(steersman_evidence=answers([0, 0, NEVER_SEEN, []]), steersman_captured=lambda *_: None)
    engine = opened(client)
    call = engine.capture([5], [(0, 1)], [0]) if ask == "capture" else getattr(engine, ask)([5, 6], SPEC)
    task = asyncio.create_task(call)
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await asyncio.sleep(0.01)
    assert [method for method, _ in client.calls] == [
        "steersman_captured" if ask == "capture" else "steersman_evidence"
    ]


@pytest.mark.parametrize(("limit", "given"), [(-1, 5), (256, 5), (2, 2), (0, 1)])
async def test_the_likeliest_tokens(limit, given):
    """Five, best first, or as many as the engine gives: it always adds the token it chose."""

    class Likely(Client):
        async def answer(self, prompt, params, request_id, **options):
            self.asked = params.logprobs
            found = {n: SimpleNamespace(logprob=-float(n)) for n in range(max(params.logprobs, 1))}
            yield SimpleNamespace(outputs=[SimpleNamespace(logprobs=[found])])

    client = Likely()
    client.generate, client.vllm_config.model_config.max_logprobs = client.answer, limit
    assert await opened(client).likeliest([5], None) == [-float(n) for n in range(given)]
    assert client.asked == (5 if limit < 0 else min(5, limit))


class Scored(Client):
    """Gives the token at each position the log-probability `-position`, another one beside it."""

    def __init__(self, *replies) -> None:
        super().__init__(max(1, len(replies)), steersman_evidence=answers(*replies))
        self.generate = self._scored

    async def _scored(self, prompt, params, request_id, **options):
        self.sent.calls.append((prompt, params, request_id, (), options))
        steps = [None] + [
            {token: SimpleNamespace(logprob=-position), -1: SimpleNamespace(logprob=-99)}
            for position, token in enumerate(prompt["prompt_token_ids"][1:], start=1)
        ]
        yield SimpleNamespace(prompt_logprobs=steps)


async def test_unsteered_scores():
    """The log-probability of each token but the first, whatever the context's own spec."""
    client = Scored()
    with during(_applied(SPEC)):
        assert await opened(client).score([7, 8, 9], None) == [-1, -2]
    prompt, params = client.sent.last()
    assert params.extra_args is None
    assert "cache_salt" not in prompt
    assert client.calls == []


async def test_steered_scores():
    """A scored text is steered as asked, under a trace of its own, which the worker must vouch for."""
    client = Scored([2, 0, None, []])
    engine = opened(client)
    assert await engine.score([7, 8, 9], SPEC) == [-1, -2]
    assert await engine.score([7, 8, 9], SPEC) == [-1, -2]
    sent = [SteeringSpec.decode(call[1].extra_args[STEERING_KEY]) for call in client.sent.calls]
    assert [spec.terms for spec in sent] == [SPEC.terms] * 2
    assert [args[0] for _, args in client.calls] == [[spec.trace] for spec in sent]
    assert len({spec.trace for spec in sent}) == 2
    assert current_spec.get() is None


async def test_a_text_scored_unsteered_is_an_error():
    """No measure is taken from a text that the worker did not steer."""
    with pytest.raises(Unavailable, match="not resident"):
        await opened(Scored([0, 0, "vector d is not resident", []])).score([7, 8], SPEC)


JSON_OBJECT = [("json_object", "response_format")]


@pytest.mark.parametrize(
    ("sent", "constraints"),
    [
        ({}, []),
        ({"steering_preset": "brevity"}, []),
        ({"steering_preset": "JSON_Compliance"}, JSON_OBJECT),
        ({"steering_preset": ["brevity", "json_compliance"]}, JSON_OBJECT),
        ({"steering": {"preset": "json_compliance"}}, JSON_OBJECT),
        ({"steering": [{"vector_id": "v"}, {"preset": "json_compliance"}]}, JSON_OBJECT),
        ({"steering": [SteeringEntry(preset="json_compliance")]}, JSON_OBJECT),
        ({"steering_preset": "json_compliance", "regex_pattern": "a+"}, [("regex", "regex_pattern")]),
    ],
)
def test_the_preset_that_constrains(sent, constraints):
    """Wherever a request names it, the text is held to JSON, unless the request constrains it otherwise."""
    chat = ChatRequest.model_validate({"messages": [{"role": "user", "content": "x"}], **sent})
    completion = CompletionRequest.model_validate({"prompt": "x", **sent})
    for request in (chat, completion):
        taken = [(constraint.kind, field) for constraint, field in request.take_constraints()]
        assert taken == constraints
