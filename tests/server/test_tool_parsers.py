"""Which parser a family of models gets, by snippets of the templates that its models have."""

import pytest

from server.tool_parsers import Marks, Parsers, parsers

JSON_CALL = '{% if tools %}<tool_call>{"name": x, "arguments": y}</tool_call>{% endif %}'
XML_CALL = "<tool_call><function={{ n }}><parameter={{ k }}>{{ v }}</parameter></function></tool_call>"
KEYED_CALL = "<tool_call>{{ n }}<arg_key>{{ k }}</arg_key><arg_value>{{ v }}</arg_value></tool_call>"
DEEPSEEK = "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>{{ n }}<｜tool▁sep｜>"


@pytest.mark.parametrize(
    ("model_type", "template", "tools"),
    [
        ("qwen2", JSON_CALL, "hermes"),
        ("llama", JSON_CALL, "hermes"),
        ("qwen3_moe", XML_CALL, "qwen3_coder"),
        ("nemotron_h", XML_CALL, "qwen3_coder"),
        ("mimo", XML_CALL, "mimo"),
        ("step3p5", XML_CALL, "step3p5"),
        ("llama", "{{ '<|python_tag|>' }}", "llama3_json"),
        ("llama", "Environment: ipython. Given the following functions, answer", "llama3_json"),
        ("llama4", "{% if tools %}[f(x=1)]{% endif %}", "llama4_pythonic"),
        ("mistral", "{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]", "mistral"),
        ("mistral3", "", "mistral"),
        ("mistral", "{{ messages }}", None),
        ("deepseek_v3", DEEPSEEK + "\n```json\n", "deepseek_v3"),
        ("deepseek_v3", DEEPSEEK, "deepseek_v31"),
        ("deepseek_v32", "", "deepseek_v32"),
        ("granite", "<|tool_call|>[]", "granite"),
        ("granitemoehybrid", JSON_CALL, "granite4"),
        ("gpt_oss", "<|start|>assistant<|channel|>", "openai"),
        ("glm4_moe", KEYED_CALL, "glm45"),
        ("other", KEYED_CALL, None),
        ("minimax_m2", "<minimax:tool_call>", "minimax_m2"),
        ("phi3", "<|tool|>{{ tools }}<|/tool|>", "phi4_mini_json"),
        ("internlm2", "<|action_start|><|plugin|>", "internlm"),
        ("jamba", "<tool_calls>[]</tool_calls>", "jamba"),
        ("hunyuan_v1_moe", "<tool_calls>[]</tool_calls>", "hunyuan_a13b"),
        ("other", "<tool_calls>[]</tool_calls>", None),
        ("kimi_k2", "<|tool_calls_section_begin|>", "kimi_k2"),
        ("seed_oss", "<seed:tool_call>", "seed_oss"),
        ("olmo3", "<function_calls>", "olmo3"),
        ("gemma3_text", "<start_function_call>", "functiongemma"),
        ("gemma4", "<|tool_call>call:f{}<tool_call|>", "gemma4"),
        ("ernie4_5_moe", JSON_CALL, "ernie45"),
        ("lfm2", "<|tool_list_start|>", "lfm2"),
        ("llama", "{{ messages }}", None),
        ("", "", None),
    ],
)
def test_a_family_gets_its_parser(model_type, template, tools):
    """By what its chat template shows, and by its type where families share a mark."""
    assert parsers(Marks("org/some-model", model_type, (), template)).tools == tools


@pytest.mark.parametrize(
    ("name", "model_type", "template", "reasoning"),
    [
        ("Qwen/Qwen3-8B", "qwen3", JSON_CALL + "{% if enable_thinking %}<think>{% endif %}", "qwen3"),
        ("Qwen/Qwen3-4B-Instruct-2507", "qwen3", JSON_CALL, None),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-7B", "qwen2", "<think>", "deepseek_r1"),
        ("/models/DeepSeek-R1/", "deepseek_v3", "<think>", "deepseek_r1"),
        ("deepseek-ai/DeepSeek-V3.1", "deepseek_v3", "{% if thinking %}<think>{% endif %}", "deepseek_v3"),
        ("zai-org/GLM-4.5", "glm4_moe", KEYED_CALL + "<think>", "glm45"),
        ("openai/gpt-oss-20b", "gpt_oss", "", "openai_gptoss"),
        ("mistralai/Magistral", "mistral", "[THINK][TOOL_CALLS]", "mistral"),
        ("org/tuned", "llama", "<think>", None),
    ],
)
def test_a_family_that_thinks_gets_its_reasoning_parser(name, model_type, template, reasoning):
    """Where its template has the marks; of an unknown family's `<think>` nothing is concluded."""
    assert parsers(Marks(name, model_type, (), template)).reasoning == reasoning


def test_architectures_say_what_a_type_does_not():
    """Of a config without a model_type."""
    assert parsers(Marks(architectures=("GptOssForCausalLM",))) == Parsers("openai", "openai_gptoss")


def test_a_name_decides_between_models_of_one_template():
    """xLAM and ToolACE are tuned from Llama, and keep its template."""
    llama = {"model_type": "llama", "chat_template": "<|python_tag|>"}
    assert parsers(Marks("Salesforce/Llama-xLAM-2-8b-fc-r", **llama)).tools == "xlam"
    assert parsers(Marks("Team-ACE/ToolACE-8B", **llama)).tools == "pythonic"
    assert parsers(Marks("xlam-org/Llama-3.1-8B", **llama)).tools == "llama3_json"
