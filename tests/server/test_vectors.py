"""Stored steering vectors, on SQLite and on a real PostgreSQL server."""

import asyncio
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from server.database import Database
from server.errors import Conflict, InvalidRequest, NotFound
from server.store import DEFAULT_ACCOUNT
from server.vectors import NewVector, Vectors, require_model
from steering.vector import SteeringVector

MODEL = SimpleNamespace(name="org/model", fingerprint="f" * 64, layers=24, width=4)


def numbers(*layers, seed=0):
    rows = np.random.default_rng(seed).normal(size=(len(layers), 4)).astype(np.float32)
    return SteeringVector.of(dict(zip(layers, rows, strict=True)))


def new(account_id=DEFAULT_ACCOUNT, **fields):
    given = {"vector": numbers(16, 17), "method": "caa", "model_name": "org/model"}
    return NewVector(account_id, **(given | fields))


@pytest.fixture
async def vectors(store):
    """Vectors of a database that has two accounts."""
    await store.first_key()
    async with store.database.writing() as connection:
        await connection.execute(
            text("INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
        )
    return Vectors(store.database)


async def test_a_vector_comes_back_as_it_was(vectors):
    """Numbers, norms by layer and all that is known of a vector survive the database."""
    made = new(
        name="höflich",
        label="l",
        category="c",
        model_fingerprint=MODEL.fingerprint,
        doses={16: 0.25, 17: 0.5},
        scale=2.5,
        dataset_digest="d" * 64,
        evidence={"pairs": 60, "margins": [0.5]},
    )
    record = await vectors.get(DEFAULT_ACCOUNT, await vectors.add(made))
    assert SteeringVector.from_blob(await vectors.blob(record.id)).digest == made.vector.digest
    assert (record.digest, record.width, record.layers) == (made.vector.digest, 4, (16, 17))
    assert record.norms == pytest.approx(made.vector.norms)
    for field in ("name", "label", "category", "method", "model_name", "model_fingerprint", "doses", "scale"):
        assert getattr(record, field) == getattr(made, field)
    assert (record.evidence, record.dataset_digest) == (made.evidence, made.dataset_digest)
    assert record.created_at.utcoffset().total_seconds() == 0


async def test_a_vector_of_a_given_id_is_added_once(vectors):
    """Whoever does not know whether it is stored may add it again, and finds what was stored first."""
    assert await vectors.add(new(name="first"), "mine") == "mine"
    assert await vectors.add(new(name="second"), "mine") == "mine"
    assert [record.name for record in await vectors.list(None)] == ["first"]


async def test_what_was_read_a_moment_ago(vectors, store):
    """Every request's look-up may be 2 s behind other processes, but never behind this one's own changes."""
    vector_id = await vectors.add(new(label="first"))
    other = Vectors(store.database)
    assert (await other.recent(DEFAULT_ACCOUNT, vector_id)).label == "first"
    with pytest.raises(NotFound):
        await other.recent("other", vector_id)
    await vectors.relabel(DEFAULT_ACCOUNT, vector_id, label="second")
    assert (await vectors.recent(DEFAULT_ACCOUNT, vector_id)).label == "second"
    assert (await other.recent(DEFAULT_ACCOUNT, vector_id)).label == "first"
    assert (await other.get(DEFAULT_ACCOUNT, vector_id)).label == "second"
    await vectors.delete(DEFAULT_ACCOUNT, vector_id)
    with pytest.raises(NotFound):
        await vectors.recent(DEFAULT_ACCOUNT, vector_id)


async def test_what_is_not_known_is_null(vectors, store):
    """Absent doses and evidence are SQL's null; a vector without a calibration has no scale."""
    vector_id = await vectors.add(new())
    record = await vectors.get(DEFAULT_ACCOUNT, vector_id)
    assert (record.doses, record.evidence, record.model_fingerprint, record.scale) == (None, None, None, None)
    assert (await vectors.get(None, await vectors.add(new(scale=0.5)))).scale == 0.5
    async with store.database.reading() as connection:
        found = await connection.execute(
            text("SELECT count(*) FROM steering_vectors WHERE doses IS NULL AND evidence IS NULL")
        )
        assert found.scalar() == 2


async def test_an_account_sees_and_changes_its_own(vectors):
    """A vector of another account is not found, listed, relabelled or deleted; the operator reaches all."""
    vector_id = await vectors.add(new())
    for attempt in (
        vectors.get("other", vector_id),
        vectors.relabel("other", vector_id, label="x"),
        vectors.delete("other", vector_id),
        vectors.get(DEFAULT_ACCOUNT, "nothing"),
        vectors.blob("nothing"),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await vectors.delete_many("other", [vector_id]) == []
    assert await vectors.list("other") == []
    assert [record.id for record in await vectors.list(DEFAULT_ACCOUNT)] == [vector_id]
    assert [record.id for record in await vectors.list(None)] == [vector_id]
    await vectors.relabel(None, vector_id, label="x")
    assert (await vectors.get(DEFAULT_ACCOUNT, vector_id)).label == "x"


async def test_several_vectors_are_looked_up_at_once(vectors):
    """Those that are there for the account, shared presets among them; others are passed over."""
    mine, theirs = await vectors.add(new(label="m")), await vectors.add(new("other"))
    preset = await vectors.put_preset(shared())
    found = await vectors.those(DEFAULT_ACCOUNT, {mine, theirs, preset.id, "nothing"})
    assert set(found) == {mine, preset.id}
    assert found[mine] == await vectors.get(DEFAULT_ACCOUNT, mine)
    assert await vectors.those(DEFAULT_ACCOUNT, set()) == {}


async def test_an_unknown_account_has_no_vectors(vectors):
    """A vector needs an account that exists; the default one is made where it is missing."""
    with pytest.raises(NotFound, match="account 'nobody'"):
        await vectors.add(new("nobody"))


async def test_the_first_vector_makes_the_default_account(store):
    """On an empty database, an import by the operator works before there is any key."""
    vectors = Vectors(store.database)
    assert await vectors.get(DEFAULT_ACCOUNT, await vectors.add(new()))


async def test_labels_change_one_by_one(vectors):
    """What is not given stays, None clears, and a change of nothing is fine."""
    vector_id = await vectors.add(new(name="n", label="l", category="c"))

    async def labels():
        record = await vectors.get(DEFAULT_ACCOUNT, vector_id)
        return record.name, record.label, record.category

    await vectors.relabel(DEFAULT_ACCOUNT, vector_id, label="new")
    assert await labels() == ("n", "new", "c")
    await vectors.relabel(DEFAULT_ACCOUNT, vector_id, name=None, category="d")
    assert await labels() == (None, "new", "d")
    await vectors.relabel(DEFAULT_ACCOUNT, vector_id)
    assert await labels() == (None, "new", "d")
    with pytest.raises(NotFound):
        await vectors.relabel(DEFAULT_ACCOUNT, "nothing")


async def test_a_deleted_vector_is_gone(vectors):
    """Deleting is at once and cannot be repeated; of several ids the missing ones are passed over."""
    one, two, three = [await vectors.add(new()) for _ in range(3)]
    await vectors.delete(DEFAULT_ACCOUNT, one)
    for attempt in (
        vectors.get(DEFAULT_ACCOUNT, one),
        vectors.blob(one),
        vectors.delete(DEFAULT_ACCOUNT, one),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await vectors.delete_many(DEFAULT_ACCOUNT, [three, one, two, three]) == [three, two]
    assert await vectors.delete_many(DEFAULT_ACCOUNT, []) == []
    assert await vectors.list(DEFAULT_ACCOUNT) == []


async def test_a_list_can_be_narrowed(vectors):
    """By method and category, a page at a time, newest first."""
    first = await vectors.add(new(method="caa", category="a"))
    second = await vectors.add(new(method="asas", category="a"))
    third = await vectors.add(new(method="caa", category="b"))

    async def found(**filters):
        return [record.id for record in await vectors.list(DEFAULT_ACCOUNT, **filters)]

    assert await found() == [third, second, first]
    assert await found(method="caa") == [third, first]
    assert await found(category="a") == [second, first]
    assert await found(limit=1, offset=1) == [second]
    assert await found(offset=2) == [first]


def shared(digest="1", **fields):
    given = {"preset": "brevity", "model_fingerprint": "f", "dataset_digest": digest}
    return new(None, **(given | fields))


async def test_a_preset_is_shared_and_nobody_s(vectors):
    """Every account may get a shared preset and list it on request; none may change or delete it."""
    made = await vectors.put_preset(shared())
    assert (await vectors.get("other", made.id)).preset == "brevity"
    assert await vectors.list("other") == []
    assert [record.id for record in await vectors.list("other", shared=True)] == [made.id]
    assert await vectors.delete_many("other", [made.id]) == []
    with pytest.raises(NotFound):
        await vectors.relabel("other", made.id, label="mine")
    assert await vectors.preset("brevity", "f") == made
    for other in (("brevity", "g"), ("safety_style", "f"), ("brevity", "f", "other")):
        assert await vectors.preset(*other) is None


async def test_racing_processes_store_a_preset_once(vectors, database_url):
    """Processes that put the same preset at once all get the one that is stored."""
    databases = [Database(database_url) for _ in range(6)]
    racers = [Vectors(database) for database in databases]
    for each in racers:
        await each.list(None)  # so that all have a connection when it begins
    put = [each.put_preset(shared(vector=numbers(1, seed=seed))) for seed, each in enumerate(racers)]
    records = await asyncio.gather(*put)
    for database in databases:
        await database.close()
    assert len({record.id for record in records}) == 1
    assert [record.id for record in await vectors.list(None)] == [records[0].id]
    stored = SteeringVector.from_blob(await vectors.blob(records[0].id))
    assert stored.digest == records[0].digest


async def test_a_preset_of_new_data_replaces_the_old(vectors):
    """The same data set keeps what is stored, another one replaces it, for this model and account alone."""
    old = await vectors.put_preset(shared())
    elsewhere = await vectors.put_preset(shared(model_fingerprint="g"))
    mine = await vectors.put_preset(replace(shared(), account_id=DEFAULT_ACCOUNT))
    assert await vectors.put_preset(shared(vector=numbers(3))) == old
    fresh = await vectors.put_preset(shared("2"))
    assert fresh.id != old.id
    assert {record.id for record in await vectors.list(None)} == {fresh.id, elsewhere.id, mine.id}
    assert await vectors.preset("brevity", "f", DEFAULT_ACCOUNT) == mine
    with pytest.raises(NotFound):
        await vectors.put_preset(replace(shared(), account_id="nobody"))


async def test_the_database_itself_refuses_a_second_preset(vectors):
    """Of a preset, a model and an account, or no account, there cannot be two rows."""
    for account_id in (None, DEFAULT_ACCOUNT):
        await vectors.add(replace(shared(), account_id=account_id))
        with pytest.raises(IntegrityError):
            await vectors.add(replace(shared(), account_id=account_id))
    for _ in range(2):
        await vectors.add(new())  # vectors that are no presets do not meet in it


async def test_an_account_takes_its_vectors_along(vectors, store):
    """Deleting an account deletes its vectors and leaves shared presets."""
    await vectors.add(new("other"))
    kept = await vectors.put_preset(shared())
    async with store.database.writing() as connection:
        await connection.execute(text("DELETE FROM accounts WHERE id = 'other'"))
    assert [record.id for record in await vectors.list(None)] == [kept.id]


async def test_postgres_refuses_names_it_cannot_hold(postgres):
    """A name that is too long or holds NUL is the client's error, not an outage."""
    postgres.psql("CREATE DATABASE narrow_vectors")
    database = Database(postgres.get_uri(database="narrow_vectors"))
    await asyncio.to_thread(database.migrate)
    for name in ("x" * 201, "nul\0"):
        with pytest.raises(InvalidRequest):
            await Vectors(database).add(new(name=name))
    await database.close()


async def test_a_vector_of_another_model_is_refused(vectors):
    """With a fingerprint the weights decide, without one width and layers; the conflict names both models."""

    async def record(**fields):
        return await vectors.get(DEFAULT_ACCOUNT, await vectors.add(new(**fields)))

    require_model(await record(model_fingerprint=MODEL.fingerprint), MODEL)
    require_model(await record(model_name="elsewhere"), MODEL)
    for fields in (
        {"model_fingerprint": "e" * 64},
        {"vector": numbers(24)},
        {"vector": SteeringVector.of({1: np.ones(5, np.float32)})},
    ):
        with pytest.raises(Conflict, match=r"made for 'org/old'.*serves 'org/model'") as caught:
            require_model(await record(model_name="org/old", **fields), MODEL)
        assert caught.value.reason == "vector_of_another_model"
    with pytest.raises(Conflict, match="made for another model"):
        require_model(await record(model_name="", vector=numbers(99)), MODEL)
