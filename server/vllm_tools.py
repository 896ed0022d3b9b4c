"""The tools of a chat request: what may be sent, and which calls the model is held to.

vLLM constrains a call where its parser of the served model's calls can, and elsewhere says nothing. Here what
it would let pass is refused, and of what it constrains, arguments follow their tool's schema.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from vllm.entrypoints.generate.base.protocol import FunctionDefinition
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionToolsParam
from vllm.exceptions import VLLMValidationError
from vllm.sampling_params import StructuredOutputsParams

from policies.constraint import Constraint, ConstraintError, from_json_schema
from server.errors import InvalidRequest, NotSupported

MAX_TOOLS = 128  # OpenAI's own limit
# OpenAI's pattern, and what servers of the Model Context Protocol put between their name and their tool's.
_NAME = r"^[a-zA-Z0-9_.:/-]{1,128}$"
_REFERRING = ("$ref", "anyOf", "oneOf", "allOf", "enum", "const")  # schemas that say their type elsewhere


class Function(FunctionDefinition):
    model_config = ConfigDict(extra="forbid")

    name: Annotated[str, Field(pattern=_NAME)]


class Tool(ChatCompletionToolsParam):
    model_config = ConfigDict(extra="forbid")

    function: Function


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class _Name(_Strict):
    name: str


class _Allowed(_Strict):
    type: Literal["function"] = "function"
    function: _Name


class _AllowedTools(_Strict):
    mode: Literal["auto", "required"]
    tools: Annotated[list[_Allowed], Field(min_length=1)]


class _Choice(_Strict):
    type: Literal["allowed_tools"]
    allowed_tools: _AllowedTools


@dataclass(frozen=True, slots=True)
class ToolRules:
    """What the parser of the served model's calls, by name, can be asked for."""

    parser: str = "hermes"
    forces: bool = True  # answers that are calls
    pins: bool = True  # calls that the model makes of itself, to their schemas
    every: bool = False  # all of these are pinned, by --tool-strict-level


HERMES = ToolRules()


def chosen(data: dict[str, Any]) -> dict[str, Any]:
    """`data`, a request's body, with OpenAI's `allowed_tools` as the tools and choice that they amount to.

    A choice of null is none. Raises VLLMValidationError.
    """
    choice = data.get("tool_choice", "none")
    if choice is None:
        return {name: value for name, value in data.items() if name != "tool_choice"}
    if not isinstance(choice, dict) or choice.get("type") != "allowed_tools":
        return data
    try:
        allowed = _Choice.model_validate(choice).allowed_tools
    except ValidationError as error:
        first = error.errors()[0]
        path = ".".join(["tool_choice", *map(str, first["loc"])])
        raise VLLMValidationError(f"`{path}`: {first['msg']}", parameter=path) from error
    sent = data.get("tools")
    tools: list[Any] = sent if isinstance(sent, list) else []
    given = {_name(tool): tool for tool in tools}
    for index, each in enumerate(allowed.tools):
        if each.function.name not in given:
            path = f"tool_choice.allowed_tools.tools.{index}.function.name"
            raise VLLMValidationError(f"{each.function.name!r} is none of `tools`", parameter=path)
    names = {each.function.name for each in allowed.tools}
    kept = [tool for tool in tools if _name(tool) in names]
    return {**data, "tools": kept, "tool_choice": allowed.mode}


def _name(tool: Any) -> Any:
    function = tool.get("function") if isinstance(tool, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    return name if isinstance(name, str) else None


def check(tools: Sequence[Tool]) -> None:
    """Raises VLLMValidationError for names that stand twice, and arguments that would be no object."""
    names = set[str]()
    for index, tool in enumerate(tools):
        field = f"tools.{index}.function"
        if tool.function.name in names:
            raise VLLMValidationError(
                f"`tools` has two functions {tool.function.name!r}", parameter=f"{field}.name"
            )
        names.add(tool.function.name)
        kind = (tool.function.parameters or {}).get("type", "object")
        if kind != "object":
            raise VLLMValidationError(
                f"`{field}.parameters.type` is {kind!r}; arguments are an object",
                parameter=f"{field}.parameters",
            )


def held(
    request: Any, rules: ToolRules, beside: Sequence[tuple[Constraint, str]]
) -> list[tuple[Constraint, str]]:
    """The schemas that calls of `request`, which has tools, are held to, with the fields that they came from;
    its tools are changed for vLLM to do so. `beside` are the request's own constraints of its text.

    Raises InvalidRequest and NotSupported for what would not take effect.
    """
    every = list(range(len(request.tools)))
    if request.tool_choice != "auto":
        _require_forcing(rules, beside)
        pinned = every
    elif beside:
        if not rules.pins:
            raise NotSupported(
                "text of a form beside calls of the model's own choice is not served with its parser "
                f"({rules.parser}): give `tools` or the form, or `tool_choice` required",
                param="tools",
            )
        pinned = every
    else:
        strict = [index for index, tool in enumerate(request.tools) if tool.function.strict]
        if strict and not rules.pins:
            raise NotSupported(
                f"calls of the model's own choice cannot be held to their schemas with its parser "
                f"({rules.parser}): leave `strict` out, or give `tool_choice` required or a function",
                param=f"tools.{strict[0]}.function.strict",
            )
        # One strict tool has vLLM constrain the name of every call, and the arguments of its own.
        pinned = every if rules.every and rules.pins else strict
    request.tools = [_pinned(tool) if index in pinned else tool for index, tool in enumerate(request.tools)]
    return [_constraint(request.tools[index], index) for index in pinned]


def _require_forcing(rules: ToolRules, beside: Sequence[tuple[Constraint, str]]) -> None:
    if not rules.forces:
        raise NotSupported(
            f"a call cannot be forced with this model's parser ({rules.parser}): give `tool_choice` auto",
            param="tool_choice",
        )
    for constraint, field in beside:
        # A form of the text, as OpenAI's clients give it to every turn, takes nothing from a call.
        if field != "response_format" or constraint.kind == "structural_tag":
            raise InvalidRequest(
                f"`{field}` stands beside a forced call, which has a form of its own", param=field
            )


def _pinned(tool: Tool) -> Tool:
    given = tool.function.parameters or {"properties": {}}
    typed = given if any(name in given for name in _REFERRING) else {"type": "object", **given}
    function = tool.function.model_copy(update={"strict": True, "parameters": typed})
    copy: Tool = tool.model_copy(update={"function": function})
    return copy


def _constraint(tool: Tool, index: int) -> tuple[Constraint, str]:
    field = f"tools.{index}.function.parameters"
    try:
        return from_json_schema(tool.function.parameters), field
    except ConstraintError as error:
        raise InvalidRequest(str(error), param=field, code="invalid_constraint") from error


def bounded(outputs: StructuredOutputsParams | None) -> StructuredOutputsParams | None:
    """`outputs` that leave no room for white space without end in the arguments of a call.

    vLLM's own tags do, whatever its configuration says of other JSON, and small models fill it.
    """
    if outputs is None or outputs.structural_tag is None:
        return outputs
    tag = json.loads(outputs.structural_tag)
    _bound(tag)
    return replace(outputs, structural_tag=json.dumps(tag))


def _bound(node: Any) -> None:
    if isinstance(node, dict):
        if node.get("type") == "json_schema" and "json_schema" in node:
            if node.get("style", "json") == "json":
                node["max_whitespace_cnt"] = 1  # as models write it: after a comma, after a colon
            return  # what is in there is the client's
        for value in node.values():
            _bound(value)
    elif isinstance(node, list):
        for value in node:
            _bound(value)
