"""The official OpenAI client against the running server."""

import asyncio
import json
from typing import Literal

import httpx
import openai
import pytest
from pydantic import BaseModel

from server.embedded import NAME

pytestmark = pytest.mark.engine

MESSAGES = [{"role": "user", "content": "Name a river."}]
WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "enum": ["Rome", "Paris"]},
                "days": {"type": "integer", "minimum": 1, "maximum": 9},
            },
            "required": ["city", "days"],
            "additionalProperties": False,
        },
    },
}
CLOCK = {
    "type": "function",
    "function": {
        "name": "get_time",
        "parameters": {
            "type": "object",
            "properties": {"zone": {"type": "string", "enum": ["UTC", "CET"]}},
            "required": ["zone"],
            "additionalProperties": False,
        },
    },
}


def test_a_chat_completion_has_every_field_of_openais(oai):
    """Sync: one choice, a finish reason, usage that adds up, the requested model's name."""
    answer = oai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=8, temperature=0)
    assert answer.object == "chat.completion"
    assert answer.model == NAME
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    assert answer.usage.completion_tokens <= 8


async def test_the_async_client_gets_the_same_greedy_text_and_streams_it(server, oai):
    """Async, sync and streamed greedy answers are one text."""
    fields = {"model": NAME, "messages": MESSAGES, "max_tokens": 10, "temperature": 0}
    expected = (await asyncio.to_thread(oai.chat.completions.create, **fields)).choices[0].message.content
    async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=server.key) as client:
        whole = await client.chat.completions.create(**fields)
        pieces = [
            chunk.choices[0].delta.content or ""
            async for chunk in await client.chat.completions.create(**fields, stream=True)
        ]
    assert whole.choices[0].message.content == "".join(pieces) == expected


@pytest.mark.parametrize("asked", [False, True])
def test_a_stream_has_a_usage_chunk_only_when_asked(oai, asked):
    """`choices: []` with usage comes last with include_usage, and never without."""
    options = {"stream_options": {"include_usage": True}} if asked else {}
    chunks = list(
        oai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=5, stream=True, **options)
    )
    assert [bool(chunk.choices) for chunk in chunks].count(False) == asked
    assert len({chunk.id for chunk in chunks}) == 1
    if asked:
        usage = chunks[-1].usage
        assert usage.completion_tokens <= 5
        assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens


def test_n_gives_that_many_choices_and_counts_the_prompt_once(oai):
    """n=4 is four choices in order; the prompt's tokens are those of n=1."""
    one = oai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=6)
    four = oai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=6, n=4, temperature=1.5)
    assert [choice.index for choice in four.choices] == [0, 1, 2, 3]
    assert len({choice.message.content for choice in four.choices}) > 1
    assert four.usage.prompt_tokens == one.usage.prompt_tokens


def test_logprobs_are_those_of_the_tokens_shown(oai):
    """Greedy tokens are the first of their top_logprobs; bytes spell the content."""
    answer = oai.chat.completions.create(
        model=NAME, messages=MESSAGES, max_tokens=6, temperature=0, logprobs=True, top_logprobs=3
    )
    tokens = answer.choices[0].logprobs.content
    assert len(tokens) == answer.usage.completion_tokens
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(top.logprob for top in token.top_logprobs)
    spelled = b"".join(bytes(token.bytes) for token in tokens).decode()
    assert spelled.removesuffix("<|im_end|>") == answer.choices[0].message.content


class City(BaseModel):
    name: Literal["Rome", "Paris", "Oslo"]
    capital: bool


def test_a_json_schema_response_format_is_obeyed(oai):
    """The text is JSON of exactly the schema's shape."""
    answer = oai.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        max_tokens=60,
        response_format={
            "type": "json_schema",
            "json_schema": {"name": "city", "strict": True, "schema": City.model_json_schema()},
        },
    )
    assert answer.choices[0].finish_reason == "stop"
    City.model_validate_json(answer.choices[0].message.content, strict=True)


def test_parse_returns_the_pydantic_object(oai):
    """`chat.completions.parse` with a model class yields an instance of it."""
    answer = oai.chat.completions.parse(model=NAME, messages=MESSAGES, max_tokens=60, response_format=City)
    assert isinstance(answer.choices[0].message.parsed, City)


def test_parse_reports_truncation(oai):
    """An answer cut by max_tokens raises LengthFinishReasonError, as with OpenAI."""
    with pytest.raises(openai.LengthFinishReasonError):
        oai.chat.completions.parse(model=NAME, messages=MESSAGES, max_tokens=2, response_format=City)


def test_json_object_mode_gives_an_object(oai):
    """json_object: what stops by itself parses as a JSON object."""
    answer = oai.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": 'Reply with the JSON object {"a": 1}.'}],
        max_tokens=200,
        temperature=0,
        response_format={"type": "json_object"},
    )
    if answer.choices[0].finish_reason == "stop":
        assert isinstance(json.loads(answer.choices[0].message.content), dict)
    else:
        assert answer.choices[0].message.content.lstrip().startswith("{")


def call_tools(oai, **fields):
    return oai.chat.completions.create(
        model=NAME,
        messages=[{"role": "user", "content": "What is the weather in Rome?"}],
        tools=[WEATHER, CLOCK],
        max_tokens=160,
        **fields,
    ).choices[0]


def check_call(call):
    arguments = json.loads(call.function.arguments)
    if call.function.name == "get_weather":
        assert arguments["city"] in ("Rome", "Paris")
        assert 1 <= arguments["days"] <= 9
    else:
        assert call.function.name == "get_time"
        assert arguments["zone"] in ("UTC", "CET")


@pytest.mark.parametrize("parallel", [True, False])
def test_required_tools_are_called_with_valid_arguments(oai, parallel):
    """tool_choice required: at least one call, each with arguments of its schema; one if not parallel."""
    choice = call_tools(oai, tool_choice="required", parallel_tool_calls=parallel, temperature=0)
    assert choice.message.tool_calls
    assert parallel or len(choice.message.tool_calls) == 1
    for call in choice.message.tool_calls:
        check_call(call)


def test_a_named_tool_is_the_one_called(oai):
    """tool_choice names get_time: exactly that call."""
    choice = call_tools(oai, tool_choice={"type": "function", "function": {"name": "get_time"}})
    (call,) = choice.message.tool_calls
    assert call.function.name == "get_time"
    check_call(call)


def test_auto_tools_leave_the_choice_to_the_model(oai):
    """tool_choice auto: text or well-formed calls, never an error."""
    choice = call_tools(oai, tool_choice="auto", temperature=0)
    assert choice.message.content or choice.message.tool_calls
    for call in choice.message.tool_calls or ():
        json.loads(call.function.arguments)


def test_a_tool_call_streams_in_pieces_that_join(oai):
    """Deltas carry their index, and their arguments join to valid JSON."""
    joined, name = "", ""
    for chunk in oai.chat.completions.create(
        model=NAME,
        messages=MESSAGES,
        tools=[CLOCK],
        tool_choice={"type": "function", "function": {"name": "get_time"}},
        max_tokens=160,
        stream=True,
    ):
        for call in chunk.choices[0].delta.tool_calls or ():
            assert call.index == 0
            name += call.function.name or ""
            joined += call.function.arguments or ""
    assert name == "get_time"
    assert json.loads(joined)["zone"] in ("UTC", "CET")


def test_completions_echo_the_prompt(oai):
    """echo puts the prompt before what follows it."""
    answer = oai.completions.create(
        model=NAME, prompt="Once upon a time", echo=True, max_tokens=4, temperature=0
    )
    assert answer.choices[0].text.startswith("Once upon a time")
    assert len(answer.choices[0].text) > len("Once upon a time")


def test_a_list_of_prompts_is_answered_in_order(oai):
    """Each prompt's greedy continuation is the one it has alone."""
    prompts = ["The capital of France is", "1, 2, 3, 4,"]
    both = oai.completions.create(model=NAME, prompt=prompts, max_tokens=5, temperature=0)
    assert [choice.index for choice in both.choices] == [0, 1]
    for prompt, choice in zip(prompts, both.choices, strict=True):
        alone = oai.completions.create(model=NAME, prompt=prompt, max_tokens=5, temperature=0)
        assert alone.choices[0].text == choice.text


def test_best_of_counts_all_its_candidates_and_returns_the_likeliest(oai):
    """best_of=4, n=2: two choices by falling mean log-probability; all 4 × 6 tokens are counted."""
    answer = oai.completions.create(
        model=NAME,
        prompt="Rivers",
        best_of=4,
        n=2,
        max_tokens=6,
        logprobs=0,
        temperature=1.5,
        extra_body={"ignore_eos": True},
    )
    assert answer.usage.completion_tokens == 24
    means = [sum(choice.logprobs.token_logprobs) / 6 for choice in answer.choices]
    assert len(means) == 2
    assert means == sorted(means, reverse=True)


def test_completion_logprobs_align_with_tokens(oai):
    """tokens, token_logprobs, top_logprobs and text_offset have one entry per token."""
    answer = oai.completions.create(model=NAME, prompt="Rivers", max_tokens=5, temperature=0, logprobs=2)
    logprobs = answer.choices[0].logprobs
    count = answer.usage.completion_tokens
    parts = (logprobs.tokens, logprobs.token_logprobs, logprobs.top_logprobs, logprobs.text_offset)
    assert [len(part) for part in parts] == [count] * 4
    for value, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert value == max(top.values())


def test_models_are_listed_and_retrieved(oai):
    """models.list names the served model, models.retrieve returns it by its name."""
    assert NAME in [model.id for model in oai.models.list()]
    model = oai.models.retrieve(NAME)
    assert (model.id, model.object) == (NAME, "model")
    with pytest.raises(openai.NotFoundError) as raised:
        oai.models.retrieve("org/unknown")
    assert raised.value.code == "model_not_found"


def test_responses_create_answers(oai):
    """vLLM's Responses API is served behind the same key."""
    answer = oai.responses.create(model=NAME, input="Name a river.", max_output_tokens=8, temperature=0)
    assert answer.output_text
    assert answer.usage.output_tokens <= 8


def test_a_request_id_makes_the_round_trip(oai):
    """x-request-id comes back as sent, on answers and on errors, and is made where there is none."""
    sent = {"x-request-id": "trace-0042"}
    answer = oai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=2, extra_headers=sent)
    assert answer._request_id == "trace-0042"
    fresh = oai.chat.completions.create(model=NAME, messages=MESSAGES, max_tokens=2)
    assert fresh._request_id not in (None, "", "trace-0042")
    with pytest.raises(openai.NotFoundError) as raised:
        oai.chat.completions.create(model="nope", messages=MESSAGES, extra_headers=sent)
    assert raised.value.request_id == "trace-0042"


def test_a_bad_field_raises_bad_request_that_names_it(oai):
    """BadRequestError.param is the field."""
    with pytest.raises(openai.BadRequestError) as raised:
        oai.chat.completions.create(model=NAME, messages=MESSAGES, temperature=3)
    assert raised.value.param == "temperature"
    assert raised.value.type == "invalid_request_error"


def test_an_unknown_model_raises_not_found(oai):
    """NotFoundError has code model_not_found and lists what is served."""
    with pytest.raises(openai.NotFoundError) as raised:
        oai.completions.create(model="gpt-17", prompt="x")
    assert raised.value.code == "model_not_found"
    assert NAME in raised.value.message


def test_a_wrong_key_raises_authentication_error(server):
    """AuthenticationError has code invalid_api_key."""
    with (
        openai.OpenAI(base_url=f"{server.url}/v1", api_key="ax_" + "0" * 48, max_retries=0) as client,
        pytest.raises(openai.AuthenticationError) as raised,
    ):
        client.models.list()
    assert raised.value.code == "invalid_api_key"


def test_the_key_is_taken_from_either_header(server):
    """Bearer and x-api-key are equivalent; no header is a 401 with Axionic's `detail` too."""
    for headers in ({"authorization": f"Bearer {server.key}"}, {"x-api-key": server.key}):
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            headers=headers,
            json={"messages": MESSAGES, "max_tokens": 1},
            timeout=60,
        )
        assert answer.status_code == 200, answer.text
    refused = httpx.post(f"{server.url}/v1/chat/completions", json={"messages": MESSAGES})
    assert refused.status_code == 401
    assert refused.json().keys() == {"error", "detail"}
