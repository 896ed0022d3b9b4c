"""Chat completions on their way to the interaction log, and what a full one says."""

import asyncio
from datetime import UTC, datetime, timedelta

import pytest
from prometheus_client import REGISTRY

from server import interaction_log as module
from server.errors import NotSupported, Unavailable
from server.interaction_log import InteractionLog, Keep
from server.observation import Observation
from server.redaction import Redaction
from server.transcript import Transcript

ANSWER = (
    b'{"id": "%s", "object": "chat.completion", "created": 1, "model": "base",'
    b' "choices": [{"message": {"content": "a@b"}}],'
    b' "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}}'
)


class Keeper:
    """A store that fails as often as told, refuses an id, and keeps what it was given."""

    def __init__(self, *failures, refuses=None):
        self.failures, self.refuses, self.kept, self.limits = list(failures), refuses, [], []

    async def keep(self, interactions):
        await asyncio.sleep(0)
        if self.failures:
            raise self.failures.pop(0)
        if any(each.id == self.refuses for each in interactions):
            raise KeyError("bug")
        self.kept += interactions

    async def prune(self, *, most, since):
        self.limits.append((most, since))


def log(keeper, which=Keep.ASKED, **more):
    return InteractionLog(keeper, which=which, most=7, days=2, **more)


def transcript(name="a", size=10, answer=ANSWER):
    made = Transcript(
        account_id="me",
        request={"messages": [{"role": "user", "content": "a@b"}]},
        labels={},
        session_id=None,
        observation=Observation(id=name),
        size=size,
    )
    made.ends(answer % name.encode() if answer is ANSWER else answer)
    return made


def ids(keeper):
    return [each.id for each in keeper.kept]


def dropped(reason):
    return REGISTRY.get_sample_value("steersman_interactions_dropped_total", {"reason": reason}) or 0.0


@pytest.mark.parametrize(
    ("which", "kept"),
    [
        (Keep.ASKED, {True: True, None: False, False: False}),
        (Keep.ALL, {True: True, None: True, False: False}),
        (Keep.NONE, {None: False, False: False}),
    ],
)
async def test_what_is_kept_is_for_the_request_and_the_server_to_say(which, kept):
    subject = log(Keeper(), which)
    assert {store: await subject.admit(store) for store in kept} == kept


async def test_a_server_that_stores_nothing_says_so():
    with pytest.raises(NotSupported, match="--interactions none") as refused:
        await log(Keeper(), Keep.NONE).admit(store=True)
    assert refused.value.param == "store"


async def test_answers_are_written_in_order_and_redacted():
    keeper = Keeper()
    subject = log(keeper, redaction=Redaction(["a@b"]))
    for name in "abc":
        subject.add(transcript(name))
    await subject.flush()
    assert ids(keeper) == ["a", "b", "c"]
    assert keeper.kept[0].messages == [{"role": "user", "content": "[redacted]"}]
    assert keeper.kept[0].answer["choices"] == [{"message": {"content": "[redacted]"}}]


async def test_old_ones_are_pruned_now_and_then():
    """Not with every write: to count the rows takes a while."""
    keeper = Keeper()
    subject = log(keeper)
    for name in "ab":
        subject.add(transcript(name))
        await subject.flush()
    [(most, since)] = keeper.limits
    assert most == 7
    assert abs(datetime.now(UTC) - timedelta(days=2) - since) < timedelta(seconds=5)


@pytest.mark.parametrize("bound", ["count", "bytes"])
async def test_a_request_that_asks_waits_for_room(monkeypatch, bound):
    """In a full log, be it full of answers or of bytes, until the database has taken them."""
    monkeypatch.setattr(module, "WAITING", 2 if bound == "count" else 100)
    monkeypatch.setattr(module, "WAITING_BYTES", 1000 if bound == "count" else 300)
    keeper = Keeper()
    subject = log(keeper)
    for name in "ab":
        assert await subject.admit(store=True)
        subject.add(transcript(name))
    assert subject.full
    waiting = asyncio.create_task(subject.admit(store=True))
    await asyncio.sleep(0.01)
    assert not waiting.done()
    await subject.flush()
    assert await asyncio.wait_for(waiting, 5)
    assert ids(keeper) == ["a", "b"]


async def test_a_request_that_waits_in_vain_is_told(monkeypatch):
    """Before anything is generated, with what to do."""
    monkeypatch.setattr(module, "WAITING", 1)
    monkeypatch.setattr(module, "PATIENCE_SECONDS", 0.02)
    keeper = Keeper(Unavailable("away"))
    subject = log(keeper)
    subject.add(transcript("a"))
    await subject.flush()
    with pytest.raises(Unavailable, match="store: false") as refused:
        await subject.admit(store=True)
    assert refused.value.retry_after
    assert await subject.admit(store=False) is False
    await subject.flush()
    assert ids(keeper) == ["a"]
    assert await subject.admit(store=True)


async def test_what_is_stored_unasked_gives_way_and_is_counted(monkeypatch):
    monkeypatch.setattr(module, "WAITING", 1)
    subject, before = log(Keeper(), Keep.ALL), dropped("full")
    subject.add(transcript())
    assert await subject.admit(None) is False
    assert dropped("full") == before + 1


async def test_what_was_admitted_is_kept_beyond_the_bound(monkeypatch):
    """The bound is looked at before an answer is generated, never after."""
    monkeypatch.setattr(module, "WAITING", 1)
    keeper = Keeper()
    subject = log(keeper)
    for _ in "abc":
        assert await subject.admit(store=True)
    for name in "abc":
        subject.add(transcript(name))
    await subject.flush()
    assert ids(keeper) == ["a", "b", "c"]


async def test_a_defect_costs_its_own_interaction_alone(caplog):
    """Be it in what was answered or in the database; it is logged and counted, and makes room."""
    keeper, before = Keeper(refuses="b"), dropped("defect")
    subject = log(keeper)
    for each in (transcript("a"), transcript("b"), transcript("c", answer=b"[]"), transcript("d")):
        subject.add(each)
    await subject.flush()
    assert ids(keeper) == ["a", "d"]
    assert dropped("defect") == before + 2
    assert "The interaction b could not be stored" in caplog.text
    assert "The interaction c could not be stored" in caplog.text
    assert subject._bytes == 0


async def test_an_outage_keeps_the_answers_in_order():
    keeper = Keeper(Unavailable("away"))
    subject = log(keeper)
    subject.add(transcript("a"))
    await subject.flush()
    subject.add(transcript("b"))
    assert keeper.kept == []
    await subject.flush()
    assert ids(keeper) == ["a", "b"]


async def test_a_stop_writes_what_waits():
    keeper = Keeper()
    subject = log(keeper)
    running = asyncio.create_task(subject.run(60))
    await asyncio.sleep(0.01)
    subject.add(transcript("a"))
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert ids(keeper) == ["a"]
