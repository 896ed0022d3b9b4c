"""The parser that the launch chooses, and what the server then knows of it."""

import json
import re
from types import SimpleNamespace

import numpy as np
import pytest
import xgrammar
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMValidationError
from vllm.parser import ParserManager
from vllm.tokenizers import get_tokenizer

from server.vllm_launch import _parse
from server.vllm_tool_parser import complete, rules_of
from server.vllm_tools import ToolRules
from server.vllm_wire import ChatRequest
from tests.tool_schemas import SCHEMAS, checked, named, tool

HERMES = "{% if tools %}<tool_call>{{ arguments }}</tool_call>{% endif %}"
TOOL = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
    },
}


@pytest.fixture
def model(tmp_path, model_path):
    """A directory with a config, a template, and the embedded model's tokenizer."""

    def made(template="{{ messages }}", **config):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (tmp_path / name).write_bytes((model_path / name).read_bytes())
        (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **config}))
        (tmp_path / "chat_template.jinja").write_text(template)
        return str(tmp_path)

    return made


def launched(*flags):
    args = _parse(list(flags))
    return args, complete(args)


def test_a_known_family_gets_its_parser(model):
    """From the files of the model, and what is printed at the start says so."""
    args, told = launched(model(HERMES))
    assert (args.tool_call_parser, args.enable_auto_tool_choice) == ("hermes", True)
    assert told == ["Tool calls: hermes, by the model's family"]


def test_a_flag_wins(model):
    """A parser by name, which is then on; a template; none at all."""
    args, told = launched(model(HERMES), "--tool-call-parser", "pythonic")
    assert (args.tool_call_parser, args.enable_auto_tool_choice) == ("pythonic", True)
    assert told == ["Tool calls: pythonic"]
    args, told = launched(model(HERMES), "--tool-call-parser", "none")
    assert (args.tool_call_parser, told) == ("none", ["Tool calls: forced ones only"])
    args, _ = launched(model(), "--chat-template", HERMES)
    assert args.tool_call_parser == "hermes"


def test_an_unknown_family_gets_forced_calls_alone(model):
    """And is told so."""
    args, (told,) = launched(model())
    assert args.tool_call_parser == "none"
    assert "forced ones only; no parser is known" in told
    assert "shows it no tools" in told


def test_a_parser_that_does_not_fit_the_tokenizer_is_not_chosen(model):
    """vLLM would not start with it."""
    args, _ = launched(model("<|python_tag|>{{ tools }}"))
    assert args.tool_call_parser == "none"


def test_no_files_are_no_family(tmp_path):
    """Such as of a path that is none; the launch goes on, and fails where vLLM says why."""
    args, _ = launched(str(tmp_path / "nothing"))
    assert args.tool_call_parser == "none"


def test_reasoning_is_told_apart_where_the_family_is_known(model):
    """Of a family with marks of its own; a flag wins, and `none` turns it off."""
    template = HERMES + "{% if enable_thinking %}<think></think>{% endif %}"
    path = model(template, model_type="seed_oss")
    args, told = launched(path, "--reasoning-parser", "none")
    assert (args.reasoning_parser, args.structured_outputs_config.reasoning_parser) == ("", "")
    assert not any("Reasoning" in line for line in told)
    args, told = launched(path, "--reasoning-parser", "deepseek_r1")
    assert args.reasoning_parser == "deepseek_r1"
    assert told[1:] == ["Reasoning: deepseek_r1"]


def chat_of(model_path, parser):
    tokenizer = get_tokenizer(str(model_path))
    cls = ParserManager.get_parser(tool_parser_name=parser, enable_auto_tools=True, tokenizer=tokenizer)
    return SimpleNamespace(parser_cls=cls, renderer=SimpleNamespace(tokenizer=tokenizer), model_config=None)


@pytest.mark.parametrize(
    ("parser", "rules"),
    [
        ("hermes", ToolRules("hermes")),
        ("none", ToolRules("none", pins=False)),
        ("pythonic", ToolRules("pythonic", pins=False)),
        ("poolside_v1", None),
    ],
)
def test_the_parser_is_asked_what_it_can(model_path, parser, rules):
    """Whether vLLM constrains a forced call, and a strict one of the model's choice."""
    chat = chat_of(model_path, parser)
    found = rules_of(chat, SimpleNamespace(tool_call_parser=parser, tool_strict_level="auto"))
    if rules is None:
        assert not found.forces
    else:
        assert found == rules


def asked(model_path, parser, choice):
    chat = chat_of(model_path, parser)
    request = ChatCompletionRequest.model_validate(
        {"messages": [{"role": "user", "content": "x"}], "tools": [TOOL], "tool_choice": choice}
    )
    return chat.parser_cls(chat.renderer.tokenizer, request.tools), request


def test_without_a_parser_a_call_can_be_forced(model_path):
    """As plain JSON, read by vLLM itself."""
    parser, request = asked(model_path, "none", "required")
    adjusted = parser.adjust_request(request)
    assert adjusted.structured_outputs.json is not None
    text = '[{"name": "add", "parameters": {"a": 3}}]'
    _, content, (call,) = parser.parse(text, request, enable_auto_tools=True)
    assert (call.name, json.loads(call.arguments), content) == ("add", {"a": 3}, None)


def test_without_a_parser_the_models_choice_is_refused(model_path):
    """With what turns it on, and what works without."""
    parser, request = asked(model_path, "none", "auto")
    with pytest.raises(VLLMValidationError, match="--tool-call-parser") as refused:
        parser.adjust_request(request)
    assert refused.value.parameter == "tool_choice"


@pytest.mark.parametrize(
    ("text", "calls"),
    [
        ('<tool_call>\n{"name": "add", "arguments": {"a": 1', [("add", '{"a": 1')]),
        ('<tool_call>\n{"name": "ad', []),
        (
            '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call><tool_call>\n{"name": "add", "ar',
            [("add", '{"a": 1}'), ("add", "")],
        ),
    ],
)
def test_a_forced_call_that_is_cut_is_told_as_far_as_it_goes(model_path, text, calls):
    """As a stream tells it; never as text."""
    parser, request = asked(model_path, "hermes", "required")
    _, content, found = parser.parse(text, request, enable_auto_tools=True)
    assert [(call.name, call.arguments) for call in found or ()] == calls
    assert not content


@pytest.fixture(scope="module")
def hermes(model_path):
    return chat_of(model_path, "hermes")


@pytest.fixture(scope="module")
def compiler(hermes):
    tokenizer = hermes.renderer.tokenizer
    info = xgrammar.TokenizerInfo.from_huggingface(tokenizer, vocab_size=len(tokenizer))
    return xgrammar.GrammarCompiler(info)


def drawn(compiler, tag, tokenizer, seed):
    """A text of random tokens under a structural tag, to its end."""
    rng = np.random.default_rng(seed)
    matcher = xgrammar.GrammarMatcher(compiler.compile_structural_tag(tag))
    mask = xgrammar.allocate_token_bitmask(1, len(tokenizer))
    tokens: list[int] = []
    while not matcher.is_terminated():
        matcher.fill_next_token_bitmask(mask)
        bits = np.unpackbits(mask[0].numpy().view(np.uint8), bitorder="little")[: len(tokenizer)]
        token = int(rng.choice(np.flatnonzero(bits)))
        assert matcher.accept_token(token)
        tokens.append(token)
        assert len(tokens) < 2000
    return tokenizer.decode(tokens, skip_special_tokens=True)


@pytest.mark.parametrize("name", SCHEMAS)
@pytest.mark.parametrize("how", ["named", "required"])
def test_whatever_is_drawn_is_a_call_of_its_schema(hermes, compiler, name, how):
    """Under the tag that a request gets, by the dullest model there is: random tokens."""
    tokenizer = hermes.renderer.tokenizer
    request = ChatRequest.model_validate(
        {
            "messages": [{"role": "user", "content": "x"}],
            "tools": [tool(name), tool("enum")] if name != "enum" else [tool(name)],
            "tool_choice": named(name) if how == "named" else how,
            "parallel_tool_calls": False,
        }
    )
    request.take_tools(ToolRules(), request.take_constraints())
    parser = hermes.parser_cls(tokenizer, request.tools)
    params = parser.adjust_request(request).to_sampling_params(100, {})
    for seed in range(5):
        text = drawn(compiler, params.structured_outputs.structural_tag, tokenizer, seed)
        assert "  " not in re.sub(r'"(?:[^"\\]|\\.)*"', "s", text)
        _, content, (call,) = parser.parse(text, request, enable_auto_tools=True)
        assert checked({"function": {"name": call.name, "arguments": call.arguments}}) in (name, "enum")
        assert content is None
