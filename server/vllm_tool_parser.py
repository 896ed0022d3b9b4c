"""The parser that reads the served model's calls: chosen at the start, asked what it can do.

`server.tool_parsers` says which by the model's own files. A model of no known family, or `--tool-call-parser
none`, gets the parser of this module: forced calls alone, which need no form of the model's own.
"""

import logging
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vllm.entrypoints.generate.base.protocol import ExtractedToolCallInformation, FunctionCall, ToolCall
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.reasoning import ReasoningParserManager
from vllm.tokenizers import get_tokenizer
from vllm.tool_parsers import ToolParser, ToolParserManager
from vllm.tool_parsers.hermes_tool_parser import Hermes2ProToolParser
from vllm.tool_parsers.utils import is_complete_json
from vllm.transformers_utils.repo_utils import get_hf_file_bytes, get_hf_file_to_dict

from server.tool_parsers import Marks, parsers
from server.vllm_tools import ToolRules

logger = logging.getLogger("vllm.steersman")

NONE = "none"
_TURN_ON = (
    "no parser reads this model's calls; the server's flag --tool-call-parser NAME names one. `tool_choice` "
    "required, or a function, works without"
)


class ForcedOnly(ToolParser):
    """Calls that are forced are plain JSON, which vLLM reads itself; others cannot be told from text."""

    def adjust_request(self, request: Any) -> Any:
        if request.tools and request.tool_choice in ("auto", None):
            raise VLLMValidationError(f"`tool_choice` auto: {_TURN_ON}", parameter="tool_choice")
        return super().adjust_request(request)


class Hermes(Hermes2ProToolParser):
    """vLLM's own, but that a forced call cut by max_tokens is told as far as it goes, as in streams."""

    def extract_tool_calls(self, model_output: str, request: Any) -> ExtractedToolCallInformation:
        found = self._extract_tool_call_jsons(model_output)
        if request.tool_choice in ("auto", None) or all(is_complete_json(text) for text, _ in found):
            return super().extract_tool_calls(model_output, request)
        calls = []
        for text, whole in found:
            if name := self._extract_tool_name(text):
                arguments = self._extract_tool_args(text, whole) or ""
                calls.append(ToolCall(function=FunctionCall(name=name, arguments=arguments)))
        # What is cut before it has a name is no text either.
        return ExtractedToolCallInformation(tools_called=True, tool_calls=calls, content=None)


ToolParserManager.register_module(NONE, module=ForcedOnly)
ToolParserManager.register_module("hermes", module=Hermes)


def complete(args: Namespace) -> list[str]:
    """Choose what the flags leave open, from the files of the model that `args` name. A flag wins.

    Returns what is to be told of it, a line each.
    """
    marks = _marks(args)
    told = [_choose_tools(args, marks)]
    if line := _choose_reasoning(args, marks):
        told.append(line)
    return told


def _choose_tools(args: Namespace, marks: Marks) -> str:
    given = args.tool_call_parser
    if given is None:
        found = parsers(marks).tools
        problem = _unusable(ToolParserManager.get_tool_parser, found, args) if found else None
        if problem:
            logger.warning("The tool-call parser of this family, %s, does not fit: %s", found, problem)
        args.tool_call_parser = NONE if problem or not found else found
    args.enable_auto_tool_choice = True  # without it vLLM has no parser for forced calls either
    if args.tool_call_parser == NONE:
        line = "Tool calls: forced ones only" + ("" if given else "; no parser is known for this model")
    else:
        line = f"Tool calls: {args.tool_call_parser}" + ("" if given else ", by the model's family")
    if marks.chat_template and "tools" not in marks.chat_template:
        line += "; its chat template shows it no tools"
    return line


def _choose_reasoning(args: Namespace, marks: Marks) -> str | None:
    outputs = args.structured_outputs_config
    given = args.reasoning_parser or outputs.reasoning_parser
    if given == NONE:
        args.reasoning_parser = outputs.reasoning_parser = ""
        return None
    found = given or parsers(marks).reasoning
    if not given and found:
        if problem := _unusable(ReasoningParserManager.get_reasoning_parser, found, args):
            logger.warning("The reasoning parser of this family, %s, does not fit: %s", found, problem)
            return None
        args.reasoning_parser = outputs.reasoning_parser = found
    return f"Reasoning: {found}" + ("" if given else ", by the model's family") if found else None


def _unusable(find: Callable[[str], Any], name: str, args: Namespace) -> str | None:
    """Why the parser `name` cannot be had, or does not take the model's tokenizer: vLLM would not start."""
    try:
        tokenizer = get_tokenizer(
            args.tokenizer or args.model_tag,
            tokenizer_mode=args.tokenizer_mode,
            trust_remote_code=args.trust_remote_code,
            revision=args.tokenizer_revision or args.revision,
        )
        find(name)(tokenizer)
    except Exception as error:  # noqa: BLE001  # whatever it is, the family's parser is not for this model
        return str(error) or type(error).__name__
    return None


def _marks(args: Namespace) -> Marks:
    model, revision = args.model_tag, args.revision
    config = _dict("config.json", args.hf_config_path or model, revision)
    text = config.get("text_config")
    kind = config.get("model_type") or (text.get("model_type") if isinstance(text, dict) else None)
    return Marks(
        name=str(model),
        model_type=str(kind or ""),
        architectures=tuple(map(str, config.get("architectures") or ())),
        chat_template=_template(args.chat_template)
        or _own_template(args.tokenizer or model, args.tokenizer_revision or revision),
    )


def _template(given: str | None) -> str:
    """The template that a flag gives, as a path or as it is."""
    if not given:
        return ""
    try:
        return Path(given).read_text()
    except OSError:
        return given


def _own_template(model: str, revision: str | None) -> str:
    try:
        if written := get_hf_file_bytes("chat_template.jinja", model, revision):
            return str(written.decode())
    except (OSError, ValueError):
        pass
    for name in ("tokenizer_config.json", "chat_template.json"):
        found = _dict(name, model, revision).get("chat_template")
        if isinstance(found, list):  # several by name; vLLM takes this one where a request has tools
            named = {each.get("name"): each.get("template") for each in found if isinstance(each, dict)}
            found = named.get("tool_use") or named.get("default")
        if isinstance(found, str):
            return found
    return ""


def _dict(name: str, model: str, revision: str | None) -> dict[str, Any]:
    """A JSON file of the model; empty where it cannot be had, which vLLM says better."""
    try:
        found = get_hf_file_to_dict(name, model, revision)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def rules_of(chat: Any, args: Namespace) -> ToolRules:
    """What the parser of `chat`, vLLM's serving object, does with a forced call and with a strict tool."""
    return ToolRules(
        parser=args.tool_call_parser or NONE,
        forces=_constrains(chat, "required"),
        pins=_constrains(chat, "auto"),
        every=args.tool_strict_level == "parameter",
    )


def _constrains(chat: Any, choice: str) -> bool:
    function = {"name": "f", "strict": True, "parameters": {"type": "object", "properties": {}}}
    request = ChatCompletionRequest.model_validate(
        {
            "messages": [{"role": "user", "content": ""}],
            "tools": [{"type": "function", "function": function}],
            "tool_choice": choice,
        }
    )
    if chat.parser_cls is None:
        return False
    try:
        parser = chat.parser_cls(chat.renderer.tokenizer, request.tools, model_config=chat.model_config)
        adjusted = parser.adjust_request(request)
    except (VLLMValidationError, ValueError, TypeError, NotImplementedError):  # a parser's ways to say no
        return False
    return adjusted.structured_outputs is not None
