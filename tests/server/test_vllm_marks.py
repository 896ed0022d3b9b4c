"""What chat completions of OpenAI's own routes carry beside OpenAI's fields."""

from uuid import UUID

import pytest
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletionChunk

from server.completion_ids import completion_id
from tests.server.responses import payloads
from tests.server.vllm_policy_world import CHAT, COMPLETIONS, Engine, always, chat, opened

pytestmark = pytest.mark.filterwarnings("ignore:max_tokens is deprecated")

SESSION = "7d1a4c4e-3f5b-4e0b-9c55-1b1f0c9a9d11"


async def posted(path=CHAT, *, headers=None, **body):
    async with opened(Engine(always("a pear", "a plum"), lora=["tuned"])) as http:
        response = await http.post(path, json=body, headers=headers)
    assert response.status_code == 200, response.text
    return response


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"model": "tuned"},
        {"best_of": 3, "temperature": 1},
        {"policy": {"optimization": {"best_of_n": 3}, "sampling": {"temperature": 1}}},
    ],
)
async def test_an_answer_names_its_session_and_its_choices(fields):
    """With the model that wrote each, however it was chosen."""
    body = (await posted(**chat(session_id=SESSION, **{"n": 2, **fields}))).json()
    assert body["session_id"] == SESSION
    for index, choice in enumerate(body["choices"]):
        assert choice["completion_id"] == choice["message"]["id"] == completion_id("me", body["id"], index)
        assert choice["model"] == fields.get("model", "base")


async def test_members_of_an_ensemble_sign_what_they_write():
    """The winner's choice has its own name."""
    body = (await posted(**chat(ensemble_models=["tuned"], sampling_method="ensemble-sampling"))).json()
    assert (body["model"], body["choices"][0]["model"]) == ("base", "tuned")


async def test_a_stream_does_so_and_can_be_joined():
    """OpenAI's client joins every text of its pieces: none is there twice."""
    response = await posted(**chat(session_id=SESSION, stream=True))
    found = payloads([f"{part}\n\n" for part in response.text.split("\n\n") if part])
    own = completion_id("me", found[0]["id"], 0)
    assert {chunk["session_id"] for chunk in found} == {SESSION}
    assert {chunk["choices"][0]["completion_id"] for chunk in found} == {own}
    state = ChatCompletionStreamState()
    for chunk in found:
        state.handle_chunk(ChatCompletionChunk.model_validate(chunk))
    message = state.get_final_completion().choices[0].message
    assert (message.role, message.content) == ("assistant", "a pear")


async def test_any_session_is_told_as_a_uuid():
    """The same for the same one, by whatever way it comes."""
    told = [
        (await posted(**chat(session_id="a talk"))).json()["session_id"],
        (await posted(headers={"x-session-id": "a talk"}, **chat())).json()["session_id"],
        (await posted(headers={"x-session-id": "a talk"}, **chat(session_id="b"))).json()["session_id"],
        (await posted(**chat())).json()["session_id"],
    ]
    assert told[0] == told[1]
    assert len({UUID(each) for each in told}) == 3


async def test_a_completion_says_which_model_wrote_it():
    """And has no id, since it is not stored."""
    (choice,) = (await posted(COMPLETIONS, prompt="a", model="tuned")).json()["choices"]
    assert choice["model"] == "tuned"
    assert "completion_id" not in choice
