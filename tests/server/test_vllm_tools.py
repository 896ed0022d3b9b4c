"""The tools of a request: what is refused, and what the engine is told to hold calls to."""

import json

import pytest
from pydantic import ValidationError
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from server.errors import InvalidRequest, NotSupported
from server.vllm_tools import MAX_TOOLS, ToolRules, bounded
from server.vllm_wire import ChatRequest

HERMES = ToolRules()
BARE = ToolRules("pythonic", pins=False)


def tool(name="f", *, strict=None, **parameters):
    function = {"name": name, "parameters": {"type": "object"} | parameters}
    return {"type": "function", "function": function | ({} if strict is None else {"strict": strict})}


def named(name):
    return {"type": "function", "function": {"name": name}}


def chat(**fields):
    return ChatRequest.model_validate({"messages": [{"role": "user", "content": "Hi"}], **fields})


def held(rules=HERMES, **fields):
    request = chat(**fields)
    beside = request.take_constraints()
    return request, [field for _, field in request.take_tools(rules, beside)]


def allowed(*names, mode="auto"):
    return {
        "type": "allowed_tools",
        "allowed_tools": {"mode": mode, "tools": [named(name) for name in names]},
    }


@pytest.mark.parametrize("choice", ["required", named("f")])
def test_a_forced_call_is_held_to_its_schema(choice):
    """Whatever the tools say of `strict`."""
    request, fields = held(tools=[tool(strict=False), tool("g")], tool_choice=choice)
    assert [each.function.strict for each in request.tools] == [True, True]
    assert fields == ["tools.0.function.parameters", "tools.1.function.parameters"]


def test_calls_of_the_models_choice_are_held_where_a_tool_is_strict():
    """The schemas of the others may say what cannot be enforced."""
    request, fields = held(tools=[tool(), tool("g", strict=True)])
    assert [each.function.strict for each in request.tools] == [None, True]
    assert fields == ["tools.1.function.parameters"]
    assert held(tools=[tool()])[1] == []
    assert len(held(ToolRules(every=True), tools=[tool(), tool("g")])[1]) == 2


def test_text_of_a_form_leaves_room_for_calls():
    """vLLM would apply the form alone, in silence, unless the tools are strict."""
    request, fields = held(tools=[tool()], response_format={"type": "json_object"})
    assert request.tools[0].function.strict
    assert len(fields) == 1
    with pytest.raises(NotSupported) as refused:
        held(BARE, tools=[tool()], regex_pattern="a+")
    assert refused.value.param == "tools"


def test_a_strict_tool_needs_a_parser_that_can():
    """Elsewhere vLLM would drop `strict`."""
    with pytest.raises(NotSupported, match="pythonic") as refused:
        held(BARE, tools=[tool(), tool("g", strict=True)])
    assert refused.value.param == "tools.1.function.strict"
    assert held(BARE, tools=[tool(strict=True)], tool_choice="required")[1]


def test_a_parser_that_cannot_force_is_told():
    """vLLM would leave the call to the model."""
    with pytest.raises(NotSupported) as refused:
        held(ToolRules("gemma4", forces=False), tools=[tool()], tool_choice="required")
    assert refused.value.param == "tool_choice"


@pytest.mark.parametrize(
    ("field", "value"),
    [("json_schema", {"type": "object"}), ("regex_pattern", "a"), ("grammar", 'root ::= "a"')],
)
def test_a_forced_call_has_no_constraint_beside_it(field, value):
    """It would take the place of the tool's."""
    with pytest.raises(InvalidRequest) as refused:
        held(tools=[tool()], tool_choice="required", **{field: value})
    assert refused.value.param == field


def test_a_forced_call_takes_a_response_format():
    """OpenAI's clients give one to every turn, and a call has no text."""
    fields = {"tools": [tool()], "tool_choice": "required", "response_format": {"type": "json_object"}}
    assert held(**fields)[1] == ["tools.0.function.parameters"]


@pytest.mark.parametrize(
    ("parameters", "means"),
    [
        (None, {"type": "object", "properties": {}}),
        ({}, {"type": "object", "properties": {}}),
        ({"properties": {"a": {}}}, {"type": "object", "properties": {"a": {}}}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {}}}, {"$ref": "#/$defs/a", "$defs": {"a": {}}}),
    ],
)
def test_arguments_are_an_object(parameters, means):
    """Where the schema leaves it open too."""
    given = {"type": "function", "function": {"name": "f", "parameters": parameters}}
    request, _ = held(tools=[given], tool_choice="required")
    assert request.tools[0].function.parameters == means


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"tools": [tool(), tool()]}, "two functions 'f'"),
        ({"tools": [tool("f g")]}, "pattern"),
        ({"tools": [tool(type="string")]}, "arguments are an object"),
        ({"tools": [{"type": "function", "function": {"name": "f", "paramters": {}}}]}, "paramters"),
        ({"tools": [{"type": "custom", "custom": {"name": "f"}}]}, "type"),
        ({"tools": [tool(f"f{each}") for each in range(MAX_TOOLS + 1)]}, "at most"),
        ({"tools": [tool()], "tool_choice": allowed("g")}, "'g' is none of"),
        ({"tools": [tool()], "tool_choice": allowed("f", mode="never")}, "mode"),
        ({"tools": [tool()], "tool_choice": {"type": "allowed_tools"}}, "allowed_tools"),
        ({"tools": [tool()], "tool_choice": {**allowed("f"), "more": 1}}, "more"),
        ({"tools": 3, "tool_choice": allowed("f")}, "'f' is none of"),
    ],
)
def test_bad_tools_are_refused(fields, says):
    """With what is wrong."""
    with pytest.raises((ValidationError, VLLMValidationError), match=says):
        chat(**fields)


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_those_of_the_request(mode):
    """In its order, with the mode as the choice."""
    tools = [tool("f"), tool("g"), tool("h")]
    request = chat(tools=tools, tool_choice=allowed("h", "f", mode=mode))
    assert [each.function.name for each in request.tools] == ["f", "h"]
    assert request.tool_choice == mode


def test_a_choice_of_null_is_none():
    """vLLM would read the calls and not hold them to anything."""
    assert chat(tools=[tool()], tool_choice=None).tool_choice == "auto"
    assert chat(tool_choice=None).tool_choice == "none"


def test_white_space_in_arguments_is_bounded():
    """In vLLM's tags; what is the client's own in them stays."""
    schema = {"properties": {"type": {"const": "json_schema"}, "json_schema": {"type": "json_schema"}}}
    tag = {"format": {"tags": [{"content": {"type": "json_schema", "json_schema": schema}}]}}
    made = json.loads(bounded(StructuredOutputsParams(structural_tag=json.dumps(tag))).structural_tag)
    (content,) = (each["content"] for each in made["format"]["tags"])
    assert (content["max_whitespace_cnt"], content["json_schema"]) == (1, schema)
    other = StructuredOutputsParams(regex="a")
    assert (bounded(other), bounded(None)) == (other, None)
