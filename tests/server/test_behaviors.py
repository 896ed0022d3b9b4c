"""Stored behaviours, on SQLite and on a real PostgreSQL server."""

import asyncio

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from server import behaviors as module
from server.behaviors import BehaviorRow, Behaviors
from server.database import Database
from server.errors import Conflict, InvalidRequest, NotFound
from tests.server.behavior_world import BASELINE, MINE, MODEL, PAIRS, calibrated, detector, new

FINGERPRINT = MODEL.fingerprint


@pytest.fixture
async def behaviors(store):
    """Behaviours of a database that has two accounts."""
    await store.first_key()
    await change(store, "INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
    return Behaviors(store.database)


async def change(store, statement):
    async with store.database.writing() as connection:
        await connection.execute(text(statement))


async def test_a_behaviour_comes_back_as_it_was(behaviors):
    """Baseline, pairs, detector and all that is known of it survive the database."""
    made = await behaviors.add(new("höflich", evidence={"pairs": 12, "correction": [{"cost": None}]}))
    found = await behaviors.get(MINE, made.id)
    assert found == made
    assert (found.account_id, found.name, found.description) == (MINE, "höflich", "says yes")
    wanted = calibrated(evidence={"pairs": 12, "correction": [{"cost": None}]})
    for field in ("model_name", "model_fingerprint", "sae", "sae_source", "sae_digest", "layer", "hook"):
        assert getattr(found, field) == getattr(wanted, field)
    assert (found.steering_vector_id, found.strength) == ("v-1", -0.5)
    assert (found.baseline, found.evidence) == (BASELINE, wanted.evidence)
    assert await behaviors.pairs(MINE, made.id) == PAIRS
    assert found.detector_digest == detector().digest
    assert (await behaviors.detector(found)).digest == detector().digest
    assert found.created_at == found.updated_at
    assert found.created_at.utcoffset().total_seconds() == 0


async def test_without_a_safe_strength_there_is_none(behaviors):
    made = await behaviors.add(new(strength=None))
    assert (await behaviors.get(MINE, made.id)).strength is None


async def test_a_baseline_of_another_version_is_not_understood(behaviors, store):
    """The behaviour is found and listed all the same, without one."""
    made = await behaviors.add(new())
    await change(store, "UPDATE behaviors SET baseline = '{\"version\": 99}'")
    assert (await behaviors.get(MINE, made.id)).baseline is None
    assert [record.baseline for record in await behaviors.list(MINE)] == [None]


async def test_a_name_is_unique_for_an_account_and_a_model(behaviors):
    """Other accounts and other models may use it; the refusal names the one that has it."""
    made = await behaviors.add(new())
    await behaviors.add(new(account="other"))
    await behaviors.add(new(model_fingerprint="e" * 64))
    for attempt in (behaviors.add(new()), behaviors.require_free(MINE, FINGERPRINT, "agreeing")):
        with pytest.raises(Conflict, match=made.id) as refused:
            await attempt
        assert (refused.value.param, refused.value.reason) == ("behavior_name", "behavior_exists")
    await behaviors.require_free(MINE, FINGERPRINT, "another")


async def test_the_database_itself_refuses_a_second_name(behaviors, monkeypatch):
    async def free(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr(module, "_require_free", free)
    await behaviors.add(new())
    with pytest.raises(IntegrityError):
        await behaviors.add(new())


async def test_of_racing_processes_one_gets_the_name(behaviors, database_url):
    databases = [Database(database_url) for _ in range(5)]
    racers = [Behaviors(database) for database in databases]
    for each in racers:
        await each.list(MINE)  # so that all have a connection when it begins
    ended = await asyncio.gather(*(each.add(new()) for each in racers), return_exceptions=True)
    for database in databases:
        await database.close()
    assert [type(each) for each in ended].count(Conflict) == 4
    [stored] = await behaviors.list(MINE)
    assert stored in ended


async def test_an_account_has_so_many_behaviours(behaviors, monkeypatch):
    """Those of other models count, those of other accounts do not."""
    monkeypatch.setattr(module, "MAX_BEHAVIORS", 2)
    await behaviors.add(new("one"))
    await behaviors.add(new("two", model_fingerprint="e" * 64))
    for attempt in (behaviors.add(new("three")), behaviors.require_free(MINE, FINGERPRINT, "three")):
        with pytest.raises(Conflict, match="at most 2 behaviours") as refused:
            await attempt
        assert refused.value.reason == "too_many"
    await behaviors.add(new("three", account="other"))


async def test_an_unknown_account_has_none(behaviors):
    with pytest.raises(NotFound, match="account 'nobody'"):
        await behaviors.add(new(account="nobody"))


async def test_an_account_sees_and_changes_its_own(behaviors):
    made = await behaviors.add(new())
    for attempt in (
        behaviors.get("other", made.id),
        behaviors.pairs("other", made.id),
        behaviors.rename("other", made.id, "mine"),
        behaviors.recalibrate("other", made.id, calibrated()),
        behaviors.delete("other", made.id),
        behaviors.recent("other", FINGERPRINT, [made.id]),
        behaviors.get(MINE, "nothing"),
        behaviors.pairs(MINE, "nothing"),
        behaviors.rename(MINE, "nothing", "mine"),
        behaviors.delete(MINE, "nothing"),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await behaviors.list("other") == []
    assert await behaviors.list(MINE) == [made]


async def test_a_list_is_newest_first_and_has_pages(behaviors):
    made = [await behaviors.add(new(name)) for name in ("one", "two", "three")]
    newest = [record.id for record in reversed(made)]
    assert [record.id for record in await behaviors.list(MINE)] == newest
    assert [record.id for record in await behaviors.list(MINE, limit=1, offset=1)] == newest[1:2]


async def test_requests_name_behaviours_by_name_or_id(behaviors):
    """In the order of the request, each once; an id wins over another's name."""
    one, two = await behaviors.add(new("one")), await behaviors.add(new("two"))
    found = await behaviors.recent(MINE, FINGERPRINT, ["two", one.id, "one", two.id])
    assert [record.id for record in found] == [two.id, one.id]
    odd = await behaviors.add(new(one.id))
    assert [record.id for record in await behaviors.recent(MINE, FINGERPRINT, [one.id])] == [one.id]
    assert odd.id != one.id
    assert await behaviors.recent(MINE, FINGERPRINT, []) == []


async def test_an_unknown_name_is_refused_with_those_there_are(behaviors, monkeypatch):
    """The field and its place are named; of very many names some are listed."""
    with pytest.raises(NotFound, match="there is none; POST /behaviors/create") as refused:
        await behaviors.recent(MINE, FINGERPRINT, ["agreeing"])
    assert refused.value.param == "behavior_names.0"
    for name in ("one", "two", "three"):
        await behaviors.add(new(name))
    with pytest.raises(NotFound, match="'agreeing': there are 'one', 'three', 'two'") as refused:
        await behaviors.recent(MINE, FINGERPRINT, ["one", "agreeing"], "force_steering")
    assert refused.value.param == "force_steering.1"
    monkeypatch.setattr(module, "MAX_NAMES", 1)
    with pytest.raises(NotFound, match="there are 'one', …"):
        await behaviors.recent(MINE, FINGERPRINT, ["agreeing"])


async def test_a_behaviour_of_another_model_is_a_conflict(behaviors):
    """It says what would make it one of this model; one of the same name for this model is found."""
    await behaviors.add(new(model_name="org/old", model_fingerprint="e" * 64))
    with pytest.raises(Conflict, match=r"made for 'org/old'.*recompute-baselines") as refused:
        await behaviors.recent(MINE, FINGERPRINT, ["agreeing"])
    assert (refused.value.param, refused.value.reason) == ("behavior_names.0", "behavior_of_another_model")
    made = await behaviors.add(new())
    assert await behaviors.recent(MINE, FINGERPRINT, ["agreeing"]) == [made]


async def test_what_was_read_a_moment_ago(behaviors, store):
    """Every request's look-up may be 2 s behind other processes, but never behind this one's own changes."""
    made = await behaviors.add(new())
    other = Behaviors(store.database)
    assert await other.recent(MINE, FINGERPRINT, ["agreeing"]) == [made]
    await behaviors.rename(MINE, made.id, "nodding")
    assert (await other.recent(MINE, FINGERPRINT, ["agreeing"]))[0].name == "agreeing"
    assert (await behaviors.recent(MINE, FINGERPRINT, ["nodding"]))[0].id == made.id
    with pytest.raises(NotFound):
        await behaviors.recent(MINE, FINGERPRINT, ["agreeing"])
    await behaviors.recalibrate(MINE, made.id, calibrated(strength=-2.0))
    assert (await behaviors.recent(MINE, FINGERPRINT, ["nodding"]))[0].strength == -2.0
    await behaviors.delete(MINE, made.id)
    with pytest.raises(NotFound):
        await behaviors.recent(MINE, FINGERPRINT, ["nodding"])


async def test_renaming(behaviors):
    """To a free name or its own; one that another behaviour of its model has is refused."""
    made = await behaviors.add(new())
    await behaviors.add(new("taken"))
    await behaviors.add(new("elsewhere", model_fingerprint="e" * 64))
    with pytest.raises(Conflict, match="'taken' already") as refused:
        await behaviors.rename(MINE, made.id, "taken")
    assert refused.value.param == "behavior_name"
    for name in ("agreeing", "elsewhere"):
        renamed = await behaviors.rename(MINE, made.id, name)
        assert renamed.name == name
    assert renamed.updated_at > renamed.created_at == made.created_at


async def test_calibrating_anew(behaviors):
    """All of what it is on a model is replaced, and its name, pairs and id stay."""
    made = await behaviors.add(new(model_name="org/old", model_fingerprint="e" * 64))
    assert (await behaviors.detector(made)).digest == detector().digest
    anew = calibrated(detector=detector(1), steering_vector_id="v-2", strength=None)
    moved = await behaviors.recalibrate(MINE, made.id, anew)
    assert (moved.id, moved.name, moved.model_name) == (made.id, made.name, "org/model")
    assert (moved.steering_vector_id, moved.strength) == ("v-2", None)
    assert (await behaviors.detector(moved)).digest == detector(1).digest
    assert await behaviors.pairs(MINE, made.id) == PAIRS
    await behaviors.add(new("moved", model_fingerprint="e" * 64))
    await behaviors.add(new("moved"))
    [old] = [record for record in await behaviors.list(MINE) if record.model_fingerprint == "e" * 64]
    with pytest.raises(Conflict, match="'moved' already"):
        await behaviors.recalibrate(MINE, old.id, anew)


async def test_a_detector_of_a_record_that_is_out_of_date_is_not_found(behaviors, store):
    """What a behaviour's record says and what scores for it never differ."""
    made = await behaviors.add(new())
    await behaviors.recalibrate(MINE, made.id, calibrated(detector=detector(1)))
    with pytest.raises(NotFound):
        await Behaviors(store.database).detector(made)


async def test_few_detectors_are_held(behaviors, monkeypatch):
    monkeypatch.setattr(module, "_DETECTORS", 2)
    made = [await behaviors.add(new(f"b{seed}", detector=detector(seed))) for seed in range(4)]
    for record in made:
        assert (await behaviors.detector(record)).digest == record.detector_digest
    assert list(behaviors._detectors) == [record.detector_digest for record in made[2:]]


async def test_an_account_takes_its_behaviours_along(behaviors, store):
    await behaviors.add(new(account="other"))
    kept = await behaviors.add(new())
    await change(store, "DELETE FROM accounts WHERE id = 'other'")
    async with store.database.reading() as connection:
        found = await connection.execute(BehaviorRow.__table__.select())
        assert [row.id for row in found.all()] == [kept.id]


async def test_postgres_refuses_names_it_cannot_hold(postgres):
    """A name that is too long or holds NUL is the client's error, not an outage."""
    postgres.psql("CREATE DATABASE narrow_behaviors")
    database = Database(postgres.get_uri(database="narrow_behaviors"))
    await asyncio.to_thread(database.migrate)
    behaviors = Behaviors(database)
    for attempt in (
        behaviors.add(new("x" * 201)),
        behaviors.add(new("nul\0")),
        behaviors.recent(MINE, FINGERPRINT, ["nul\0"]),
    ):
        with pytest.raises(InvalidRequest):
            await attempt
    await database.close()
