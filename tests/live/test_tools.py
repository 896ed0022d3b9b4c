"""Tools on the running server: forced calls follow their schemas, whole and streamed."""

import json

import jsonschema
import openai
import pytest

from server.embedded import NAME
from tests.tool_schemas import SCHEMAS, checked, named, tool

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
ASKED = [{"role": "user", "content": "Plan a picnic in Rome for four people on Sunday."}]


def body(**fields):
    return {"messages": ASKED, "max_tokens": 300, **fields}


@pytest.mark.parametrize("how", ["named", "required"])
async def test_forced_calls_follow_their_schemas(ask, how):
    """Of twenty kinds, drawn at random: the named one; where one is required, any of three, and one alone."""
    names = list(SCHEMAS)
    sent = []
    for index, name in enumerate(names):
        others = [names[(index + step) % len(names)] for step in (0, 7, 13)]
        choice = named(name) if how == "named" else "required"
        sent.append(
            body(
                tools=[tool(each) for each in others],
                tool_choice=choice,
                parallel_tool_calls=False,
                temperature=1,
                seed=index,
            )
        )
    for name, request, response in zip(
        names, sent, await ask.together([(CHAT, each) for each in sent]), strict=True
    ):
        assert response.status_code == 200, (name, response.text)
        (choice,) = response.json()["choices"]
        assert choice["message"]["content"] is None
        (call,) = choice["message"]["tool_calls"]
        called = checked(call)
        assert (
            called == name
            if how == "named"
            else called in [each["function"]["name"] for each in request["tools"]]
        )
        assert choice["finish_reason"] == ("stop" if how == "named" else "tool_calls")


def test_required_calls_may_be_several(ask):
    """Each of its schema."""
    tools = [tool("enum"), tool("number")]
    (choice,) = ask.ok(CHAT, **body(tools=tools, tool_choice="required", temperature=0))["choices"]
    assert {checked(call) for call in choice["message"]["tool_calls"]} <= {"enum", "number"}


def streamed(ask, **fields):
    """The calls, content and end of a stream, whose deltas are looked at on the way."""
    calls, content, end = {}, "", None
    for chunk in ask.events(CHAT, **fields):
        for choice in chunk["choices"]:
            content += choice["delta"].get("content") or ""
            end = choice.get("finish_reason") or end
            for piece in choice["delta"].get("tool_calls") or ():
                known = calls.get(piece["index"])
                if known is None:
                    assert piece["index"] == len(calls)
                    assert piece["id"]
                    assert piece["type"] == "function"
                    known = calls[piece["index"]] = {
                        "function": {"name": piece["function"]["name"], "arguments": ""}
                    }
                else:
                    assert piece["function"].get("name") is None
                known["function"]["arguments"] += piece["function"].get("arguments") or ""
    return list(calls.values()), content, end


@pytest.mark.parametrize("choice", ["required", named("guests")])
@pytest.mark.parametrize("longest", [300, 12])
def test_a_stream_is_the_same_call_in_pieces(ask, choice, longest):
    """At one seed, with its name first; also where max_tokens cuts it."""
    fields = body(tools=[tool("guests"), tool("nested")], tool_choice=choice, temperature=1, seed=7)
    fields |= {"max_tokens": longest, "parallel_tool_calls": False}
    (whole,) = ask.ok(CHAT, **fields)["choices"]
    calls, content, end = streamed(ask, **fields)
    told = [each["function"] for each in whole["message"].get("tool_calls") or ()]
    assert [each["function"] for each in calls] == told
    assert (content or None, end) == (whole["message"]["content"] or None, whole["finish_reason"])
    assert (end == "length") == (longest == 12)
    if longest == 300:
        assert [checked(call) for call in calls]


def test_none_means_text(ask):
    """However many tools there are."""
    (choice,) = ask.ok(CHAT, **body(tools=[tool("text")], tool_choice="none", max_tokens=20))["choices"]
    assert choice["message"]["content"]
    assert not choice["message"].get("tool_calls")


def test_allowed_tools_bound_the_choice(oai):
    """Sent by OpenAI's own client."""
    allowed = {"mode": "required", "tools": [named("enum")]}
    answer = oai.chat.completions.create(
        model=NAME,
        messages=ASKED,
        tools=[tool("text"), tool("enum"), tool("number")],
        tool_choice={"type": "allowed_tools", "allowed_tools": allowed},
        max_tokens=200,
        parallel_tool_calls=False,
    )
    (call,) = answer.choices[0].message.tool_calls
    assert checked(call.model_dump()) == "enum"


@pytest.mark.parametrize(
    "form",
    [
        {"regex_pattern": "(yes|no)"},
        {
            "response_format": {
                "type": "json_schema",
                "json_schema": {"name": "n", "schema": SCHEMAS["number"]},
            }
        },
    ],
)
def test_text_of_a_form_beside_tools_is_of_it_or_a_call(ask, form):
    """Drawn at random a few times: nothing else comes."""
    fields = body(tools=[tool("enum")], temperature=1.5, n=6, seed=3, parallel_tool_calls=False, **form)
    for choice in ask.ok(CHAT, **fields)["choices"]:
        if calls := choice["message"].get("tool_calls"):
            assert [checked(call) for call in calls] == ["enum"]
        elif "regex_pattern" in form:
            assert choice["message"]["content"] in ("yes", "no")
        else:
            jsonschema.validate(json.loads(choice["message"]["content"]), SCHEMAS["number"])


@pytest.mark.parametrize(
    "fields",
    [
        {"policy": {"optimization": {"best_of_n": 2}}, "temperature": 1},
        {"sampling_method": "ads", "n": 2, "temperature": 1},
        {"use_beam_search": True, "n": 2},
        {"best_of": 2, "temperature": 1},
        {"steering_vector_id": "vector", "steering_strength": 0.2},
    ],
)
def test_a_forced_call_goes_with_what_is_steersmans_own(ask, vector, fields):
    """A policy, a method, beams, candidates, a vector."""
    if "steering_vector_id" in fields:
        fields = {**fields, "steering_vector_id": vector}
    answer = ask.ok(CHAT, **body(tools=[tool("nested"), tool("enum")], tool_choice=named("nested"), **fields))
    for choice in answer["choices"]:
        assert [checked(call) for call in choice["message"]["tool_calls"]] == ["nested"]


def test_a_call_and_its_result_lead_to_an_answer(oai):
    """The conversation as OpenAI's client keeps it."""
    fields = {"model": NAME, "tools": [tool("text")], "max_tokens": 100}
    called = (
        oai.chat.completions.create(messages=ASKED, tool_choice=named("text"), **fields).choices[0].message
    )
    assert called.content is None
    (call,) = called.tool_calls
    result = {"role": "tool", "tool_call_id": call.id, "content": "The park is open."}
    told = oai.chat.completions.create(messages=[*ASKED, called, result], tool_choice="none", **fields)
    assert told.choices[0].message.content


BROKEN = {
    "type": "function",
    "function": {"name": "f", "parameters": {"type": "object", "properties": {"a": 3}}},
}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [tool("text"), tool("text")]}, "tools.1.function.name"),
        ({"tools": [tool("text", name="a b")]}, "tools.0.function.name"),
        ({"tools": [tool("text", paramters={})]}, "tools.0.function.paramters"),
        ({"tools": [tool("text", parameters={"type": "string"})]}, "tools.0.function.parameters"),
        ({"tools": [tool("text"), BROKEN], "tool_choice": "required"}, "tools.1.function.parameters"),
        ({"tools": [tool("text")], "tool_choice": named("other")}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": [tool("text")], "tool_choice": "required", "regex_pattern": "a"}, "regex_pattern"),
        (
            {
                "tools": [tool("text")],
                "tool_choice": named("text"),
                "policy": {"constraints": {"json_mode": True}},
            },
            "tools",
        ),
    ],
)
def test_bad_tools_are_refused_by_the_field(oai, fields, param):
    """400, and the field is named."""
    own = {name: value for name, value in fields.items() if name in ("regex_pattern", "policy")}
    fields = {name: value for name, value in fields.items() if name not in own}
    with pytest.raises(openai.BadRequestError) as raised:
        oai.chat.completions.create(model=NAME, messages=ASKED, max_tokens=5, extra_body=own, **fields)
    assert raised.value.param == param
