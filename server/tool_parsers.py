"""Which of vLLM's parsers reads the tool calls, and the reasoning, of a family of models.

How a model writes a call is what its chat template shows it: the marks there say most. A model's type
decides between families whose marks are the same, its name where neither does. What nothing here knows gets
no parser: a wrong one would hand clients calls as text, or text as calls.
"""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Marks:
    """What a model's own files say of it: `model_type` and `architectures` of its config, its chat template.
    `name` is the path or repository that it was asked for by."""

    name: str = ""
    model_type: str = ""
    architectures: tuple[str, ...] = ()
    chat_template: str = ""

    def typed(self, *prefixes: str) -> bool:
        kinds = (self.model_type, *self.architectures)
        return any(kind.lower().replace("_", "").startswith(prefixes) for kind in kinds)

    def named(self, *parts: str) -> bool:
        last = self.name.rstrip("/").rpartition("/")[2].lower()
        return any(part in last for part in parts)

    def shows(self, *texts: str) -> bool:
        """Whether the chat template has all of `texts`."""
        return all(text in self.chat_template for text in texts)


@dataclass(frozen=True, slots=True)
class Parsers:
    """Names in vLLM's registries, or None where the family is not known or has no such thing."""

    tools: str | None = None
    reasoning: str | None = None


_Rule = tuple[str, Callable[[Marks], bool]]

# The first that holds decides. Marks that only one family has come before those that several share.
TOOL_RULES: tuple[_Rule, ...] = (
    ("openai", lambda m: m.typed("gptoss")),
    ("xlam", lambda m: m.named("xlam")),
    ("gigachat3", lambda m: m.named("gigachat3")),
    ("kimi_k3", lambda m: m.shows("<|open|>", "<|sep|>") and m.typed("kimi")),
    ("kimi_k2", lambda m: m.shows("<|tool_calls_section_begin|>")),
    ("deepseek_v41", lambda m: m.shows("｜DSML｜ calls") or m.typed("deepseekv41")),
    ("deepseek_v4", lambda m: m.shows("｜DSML｜tool_calls") or m.typed("deepseekv4")),
    ("deepseek_v32", lambda m: m.shows("｜DSML｜function_calls") or m.typed("deepseekv32")),
    ("deepseek_v3", lambda m: m.shows("<｜tool▁calls▁begin｜>", "```json")),
    ("deepseek_v31", lambda m: m.shows("<｜tool▁calls▁begin｜>")),
    ("functiongemma", lambda m: m.shows("<start_function_call>")),
    ("gemma4", lambda m: m.shows("<|tool_call>", "<tool_call|>")),
    ("minimax_m2", lambda m: m.shows("<minimax:tool_call>")),
    ("minimax_m3", lambda m: m.shows("]<]minimax[>[")),
    ("seed_oss", lambda m: m.shows("<seed:tool_call>")),
    ("longcat", lambda m: m.shows("<longcat_tool_call>")),
    ("dots", lambda m: m.shows("<dots_function_call>")),
    ("plamo3", lambda m: m.shows("<|plamo:begin_tool_requests:plamo|>")),
    ("cohere_command3", lambda m: m.shows("<|START_ACTION|>")),
    ("lfm2", lambda m: m.shows("<|tool_call_start|>") or m.shows("<|tool_list_start|>")),
    ("apertus", lambda m: m.shows("<|tools_prefix|>")),
    ("internlm", lambda m: m.shows("<|action_start|>") or (m.typed("internlm") and m.shows("<|plugin|>"))),
    ("olmo3", lambda m: m.shows("<function_calls>") and m.typed("olmo")),
    ("llama4_pythonic", lambda m: m.typed("llama4") and m.shows("tools")),
    ("pythonic", lambda m: m.named("toolace")),
    ("phi4_mini_json", lambda m: m.shows("<|tool|>", "<|/tool|>") and m.typed("phi")),
    (
        "llama3_json",
        lambda m: m.shows("<|python_tag|>") or m.shows("ipython", "Given the following functions"),
    ),
    ("mistral", lambda m: m.shows("[TOOL_CALLS]") or (_mistrals_own(m) and not m.chat_template)),
    ("granite", lambda m: m.shows("<|tool_call|>") and m.typed("granite")),
    ("granite-20b-fc", lambda m: m.named("granite-20b-functioncalling")),
    ("step3", lambda m: m.shows("<｜tool_calls_begin｜>")),
    # `<tool_call>` alone is many families'.
    ("granite4", lambda m: m.shows("<tool_call>") and m.typed("granitemoehybrid")),
    ("granite", lambda m: m.shows("<tool_call>") and m.typed("granite")),
    ("ernie45", lambda m: m.shows("<tool_call>") and m.typed("ernie45")),
    ("step3p5", lambda m: m.shows("<tool_call>") and m.typed("step3p5")),
    ("mimo", lambda m: m.shows("<tool_call>", "<function=") and m.typed("mimo")),
    ("glm47", lambda m: m.shows("<arg_key>") and m.typed("glm", "chatglm") and m.named("4.7")),
    ("glm45", lambda m: m.shows("<arg_key>") and m.typed("glm", "chatglm")),
    ("minicpm5", lambda m: m.shows("<function") and m.typed("minicpm")),
    ("qwen3_coder", lambda m: m.shows("<function=", "<parameter=")),
    ("jamba", lambda m: m.shows("<tool_calls>") and m.typed("jamba")),
    ("hunyuan_a13b", lambda m: m.shows("<tool_calls>") and m.typed("hunyuan", "hunyuanv1")),
    ("hermes", lambda m: m.shows("<tool_call>", "arguments") and not m.shows("<arg_key>")),
)

REASONING_RULES: tuple[_Rule, ...] = (
    ("openai_gptoss", lambda m: m.typed("gptoss")),
    ("deepseek_r1", lambda m: m.shows("<think>") and m.named("deepseek-r1", "qwq")),
    ("deepseek_v3", lambda m: m.shows("<think>", "thinking") and m.typed("deepseekv3")),
    ("qwen3", lambda m: m.shows("<think>") and m.typed("qwen3")),
    ("glm45", lambda m: m.shows("<think>") and m.typed("glm4moe", "glm5")),
    ("kimi_k2", lambda m: m.shows("<think>", "<|tool_calls_section_begin|>")),
    ("minimax_m2", lambda m: m.shows("<think>", "<minimax:tool_call>")),
    ("nemotron_v3", lambda m: m.shows("<think>", "enable_thinking") and m.typed("nemotronh")),
    ("olmo3", lambda m: m.shows("<think>") and m.typed("olmo3")),
    ("seed_oss", lambda m: m.shows("<seed:think>")),
    ("mistral", lambda m: m.shows("[THINK]", "[TOOL_CALLS]")),
)


def parsers(marks: Marks) -> Parsers:
    """The parsers of the family that `marks` are of."""
    return Parsers(_first(TOOL_RULES, marks), _first(REASONING_RULES, marks))


def _first(rules: tuple[_Rule, ...], marks: Marks) -> str | None:
    return next((name for name, holds in rules if holds(marks)), None)


def _mistrals_own(marks: Marks) -> bool:
    """Of Mistral's own format, whose template is in its tokenizer's code."""
    return marks.typed("mistral", "mixtral", "pixtral", "ministral", "voxtral")
