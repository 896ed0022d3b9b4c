"""Many engine requests behind one answer: fan out, choose, merge."""

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server import candidates, streams
from server.candidates import best, counts_prompt, gather, mean_logprob, merge, text_of, vote
from tests.server.responses import ChatChoice, ChatLogprobs, Choice, Logprobs, Message, response

# --- gather ---


async def test_gather_keeps_order_and_marks_prompts():
    """Results stand in the order of the calls, and each call knows whether its prompt counts."""
    seen = {}

    async def call(slot: int, delay: float) -> int:
        seen[slot] = counts_prompt.get()
        await asyncio.sleep(delay)
        return slot

    calls = [lambda slot=slot: call(slot, 0.01 * (3 - slot)) for slot in range(3)]
    assert await gather(calls, [True, False, True]) == [0, 1, 2]
    assert seen == {0: True, 1: False, 2: True}
    assert counts_prompt.get() is True


async def test_gather_cancels_siblings():
    """The first failure is raised as it is, after every sibling was cancelled."""
    cancelled = []

    async def waits(slot: int) -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(slot)
            raise

    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise LookupError("second")

    with pytest.raises(LookupError, match="second") as failure:
        await asyncio.wait_for(gather([lambda: waits(0), fails, lambda: waits(2)], [True] * 3), 5)
    assert sorted(cancelled) == [0, 2]
    assert failure.value.__cause__ is None


async def test_gather_is_cancelled_with_its_caller():
    """Cancelling who gathers cancels all calls, and stays a cancellation."""
    started, cancelled = asyncio.Event(), []

    async def waits() -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    task = asyncio.create_task(gather([waits, waits], [True, False]))
    await started.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert cancelled == [True, True]


# --- merge, best, vote ---


@given(
    st.lists(st.tuples(st.integers(1, 3), st.integers(0, 99), st.integers(0, 99), st.booleans()), min_size=1)
)
def test_merge(parts):
    """All choices in order with fresh indices; each prompt counted where it is marked, every completion."""
    texts = [[f"{i}.{j}" for j in range(count)] for i, (count, *_) in enumerate(parts)]
    responses = [
        response(*names, prompt=p, tokens=c) for names, (_, p, c, _) in zip(texts, parts, strict=True)
    ]
    merged = merge(responses, [first for *_, first in parts])
    assert [choice.text for choice in merged.choices] == [name for names in texts for name in names]
    assert [choice.index for choice in merged.choices] == list(range(len(merged.choices)))
    prompt = sum(p for _, p, _, first in parts if first)
    completion = sum(c for _, _, c, _ in parts)
    assert merged.usage.model_dump() == {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
    }


@given(st.lists(st.floats(-50, 0), min_size=1, max_size=9), st.data())
def test_best(logprobs, data):
    """The n most probable, best first; the prompt is counted once and the tokens of all."""
    n = data.draw(st.integers(1, len(logprobs)))
    chosen = best([response(str(i), logprob=value) for i, value in enumerate(logprobs)], n)
    order = sorted(enumerate(logprobs), key=lambda pair: (-pair[1], pair[0]))[:n]
    assert [choice.text for choice in chosen.choices] == [str(i) for i, _ in order]
    assert [choice.index for choice in chosen.choices] == list(range(n))
    assert (chosen.usage.prompt_tokens, chosen.usage.completion_tokens) == (7, 2 * len(logprobs))


def test_vote():
    """The majority's most probable text wins; the losers' tokens are counted too."""
    texts = [("no", -0.1), ("yes", -3.0), ("Yes.", -2.0)]
    won = vote([response(text, logprob=value) for text, value in texts])
    assert [choice.text for choice in won.choices] == ["Yes."]
    assert (won.usage.prompt_tokens, won.usage.completion_tokens) == (7, 6)


@pytest.mark.parametrize(
    ("choice", "mean"),
    [
        (Choice(text="a", logprobs=Logprobs(token_logprobs=[None, -1.0, -3.0])), -2.0),
        (Choice(text="a", logprobs=Logprobs(token_logprobs=[])), float("-inf")),
        (Choice(text="a", logprobs=Logprobs()), float("-inf")),
        (Choice(text="a"), float("-inf")),
        (
            ChatChoice(
                message=Message(),
                logprobs=ChatLogprobs(content=[SimpleNamespace(logprob=-x) for x in (1, 2)]),
            ),
            -1.5,
        ),
        (ChatChoice(message=Message(), logprobs=ChatLogprobs(content=[])), float("-inf")),
        (ChatChoice(message=Message(), logprobs=ChatLogprobs()), float("-inf")),
    ],
)
def test_mean_logprob(choice, mean):
    """Mean over known tokens; a choice without any is the least probable."""
    assert mean_logprob(choice) == mean


def test_text_of():
    """A chat message without content is an empty text."""
    assert text_of(Choice(text="a")) == "a"
    assert text_of(ChatChoice(message=Message(content="b"))) == "b"
    assert text_of(ChatChoice(message=Message())) == ""


def test_no_engine():
    """Fan-out, merging and streams know no engine."""
    assert not [name for name in (*vars(candidates), *vars(streams)) if name.startswith("vllm")]
