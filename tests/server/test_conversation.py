"""Answers that clients append to a conversation and send back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from openai.types.chat import ChatCompletionMessage

from server.conversation import sent_back
from server.vllm_wire import ChatRequest

CALL = {"id": "call_1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
ANSWERS = [
    {"role": "assistant", "content": "Hi"},
    {"role": "assistant", "content": None, "tool_calls": [CALL]},
    {"role": "assistant", "content": None, "tool_calls": [{**CALL, "index": 0}, {**CALL, "index": 1}]},
]
BESIDE = {
    "refusal": None,
    "annotations": None,
    "audio": None,
    "function_call": None,
    "reasoning": None,
    "name": None,
}


def request(answer):
    asked, result = {"role": "user", "content": "Hi"}, {"role": "tool", "tool_call_id": "c", "content": "1"}
    return ChatRequest.model_validate({"messages": [asked, answer, result]})


@pytest.mark.parametrize("answer", ANSWERS)
@pytest.mark.parametrize("beside", [{}, BESIDE, {"annotations": []}, {"id": "m"}])
def test_an_answer_is_taken_back(answer, beside):
    """With whatever says nothing in it, and as what it said."""
    message = request({**beside, **answer}).messages[1]
    assert {name for name, value in message.items() if value is not None} <= {"role", "content", "tool_calls"}
    assert message["content"] == answer["content"]
    assert [dict(each) for each in message.get("tool_calls", ())] == [CALL] * len(
        answer.get("tool_calls", ())
    )


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_sdks_own_message_is_taken_back(answer):
    """As OpenAI's client writes it into a request."""
    sent = ChatCompletionMessage.model_validate({**BESIDE, **answer}).to_dict()
    assert sent.keys() > answer.keys()
    assert request(sent).messages[1]["content"] == answer["content"]


def test_what_says_something_stays():
    """A name, a refusal, other keys and wrong types, of which validation tells."""
    messages = [
        {"role": "user", "content": None, "name": "Ann"},
        {"role": "assistant", "refusal": "No.", "annotations": [{}], "tool_calls": [{**CALL, "index": "x"}]},
        {"role": "assistant", "tool_calls": "none", "tone": 3},
        "text",
    ]
    assert sent_back(messages) == messages


@given(
    st.recursive(st.none() | st.integers(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner))
)
def test_any_json_passes(value):
    """Nothing is raised here."""
    sent_back(value)
    sent_back([{"tool_calls": value}])
