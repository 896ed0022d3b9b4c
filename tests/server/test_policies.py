"""Stored policies and presets, on SQLite and on a real PostgreSQL server."""

import asyncio
import re

import pytest
from sqlalchemy import event, text

from policies.policy import RuntimePolicy
from server import policies as module
from server.database import Database
from server.errors import Conflict, InvalidRequest, NotFound
from server.policies import MAX_BYTES, RESERVED_IDS, Policies, Visibility, plain
from server.store import DEFAULT_ACCOUNT

MINE = DEFAULT_ACCOUNT
SENT = {
    "name": "höflich",
    "metadata": {"team": ["a", None, 1.5], "nul": "\0", "deep": {"x": {}}},
    "sampling": {"method": "ads", "temperature": 0.9, "top_k": None, "ads_subset_size": 8},
    "steering": {"enabled": True, "vector": {"11": [0.5, -1.0]}, "layer_scope": ["layers.11"]},
    "constraints": {"json_schema": {"type": "object", "properties": {"z": {}, "a": {}}}},
    "verifiers": {"enabled": ["json_schema"]},
    "optimization": {},
}


def policy(**fields):
    return RuntimePolicy.model_validate(fields)


def at(temperature, policy_id=None):
    return policy(sampling={"temperature": temperature}, **({"id": policy_id} if policy_id else {}))


@pytest.fixture
async def policies(store):
    """Policies of a database that has two accounts."""
    await store.first_key()
    await change(store, "INSERT INTO accounts VALUES ('other', 'other@localhost', '2026-01-01 00:00:00+00')")
    return Policies(store.database)


async def change(store, *statements):
    async with store.database.writing() as connection:
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def age(store, table):
    """Rewrite every stored policy as a version of the server would that had a field `sampling.swing`."""
    old = '{"name": "old", "sampling": {"swing": 1}}'
    await change(store, f"UPDATE {table} SET policy = '{old}'")


async def test_a_policy_comes_back_as_it_was_sent(policies):
    """Every field that was set returns with its value, under a new id, and none that was left out."""
    saved = await policies.save(MINE, policy(**SENT))
    found = await policies.get(MINE, saved.id)
    assert found == saved
    assert found.version == 1
    assert found.policy.id == saved.id
    assert plain(found.policy) == {"id": saved.id, **SENT}
    assert found.policy.model_fields_set == {"id", *SENT}
    assert found.policy.sampling.model_fields_set == set(SENT["sampling"])
    assert list(found.policy.constraints.json_schema["properties"]) == ["z", "a"]
    assert found.created_at == found.saved_at == saved.saved_at
    assert found.saved_at.utcoffset().total_seconds() == 0


async def test_what_was_left_out_is_the_reader_s_default(policies, store):
    """Defaults are not written down: only what was set is stored."""
    await policies.save(MINE, at(0.5))
    async with store.database.reading() as connection:
        stored = (await connection.execute(text("SELECT policy FROM policy_versions"))).scalar()
    assert stored in ('{"sampling": {"temperature": 0.5}}', {"sampling": {"temperature": 0.5}})


async def test_saving_with_an_id_adds_a_version(policies):
    """The newest version is read unless another is asked for, and the old ones stay as they were."""
    first = await policies.save(MINE, at(0.1))
    second = await policies.save(MINE, at(0.2, first.id))
    assert (second.id, second.version, second.created_at) == (first.id, 2, first.created_at)
    assert await policies.get(MINE, first.id) == second
    assert await policies.get(MINE, first.id, 1) == first
    for version in (0, 3, -1):
        with pytest.raises(NotFound, match=f"version {version}"):
            await policies.get(MINE, first.id, version)
    found = await policies.versions(MINE, first.id)
    assert [(each.version, each.saved_at) for each in found] == [(2, second.saved_at), (1, first.saved_at)]
    assert [each.version for each in await policies.versions(MINE, first.id, limit=1, offset=1)] == [1]
    assert await policies.versions(MINE, first.id, offset=2) == []


@pytest.mark.parametrize("policy_id", ["support", "a", "Team.bot_2:v-1", "x" * 128, "...", "Presets"])
async def test_a_free_id_is_taken_as_it_is(policies, policy_id):
    """A client may choose the id."""
    assert (await policies.save(MINE, at(0.1, policy_id))).id == policy_id
    assert (await policies.get(MINE, policy_id)).policy.id == policy_id
    assert (await policies.save(MINE, at(0.2, policy_id))).version == 2


@pytest.mark.parametrize(
    "policy_id", ["", "x" * 129, "a b", "a/b", "a\n", "ä", ".", "..", "nul\0", *sorted(RESERVED_IDS)]
)
async def test_an_id_that_cannot_be_a_path_is_refused(policies, policy_id):
    """Odd characters, dots alone, the names of routes: the error names the id, and nothing is stored."""
    with pytest.raises(InvalidRequest) as caught:
        await policies.save(MINE, policy(id=policy_id))
    assert caught.value.param == "policy.id"
    assert await policies.list(MINE) == []


async def test_an_account_sees_and_changes_its_own(policies):
    """Another account's policy is not found, listed or deleted, and its id is as free as any other."""
    mine = await policies.save(MINE, at(0.1, "bot"))
    for attempt in (
        policies.get("other", "bot"),
        policies.get("other", "bot", 1),
        policies.versions("other", "bot"),
        policies.delete("other", "bot"),
        policies.get(MINE, "nothing"),
        policies.versions(MINE, "nothing"),
        policies.delete(MINE, "nothing"),
    ):
        with pytest.raises(NotFound):
            await attempt
    assert await policies.list("other") == []
    theirs = await policies.save("other", at(0.2, "bot"))
    assert (await policies.save("other", at(0.3, "bot"))).version == 2
    assert await policies.get("other", "bot", 1) == theirs
    assert await policies.get(MINE, "bot") == mine
    assert len(await policies.list(MINE)) == len(await policies.list("other")) == 1
    assert [each.version for each in await policies.versions("other", "bot")] == [2, 1]
    await policies.delete("other", "bot")
    assert await policies.get(MINE, "bot") == mine


async def test_an_unknown_account_has_no_policies(policies):
    """A policy or a preset needs an account that exists."""
    with pytest.raises(NotFound, match="account 'nobody'"):
        await policies.save("nobody", at(0.1))
    with pytest.raises(NotFound, match="account 'nobody'"):
        await policies.publish("nobody", None, name="n", policy=at(0.1))


async def test_the_list_has_the_newest_version_of_each(policies):
    """Newest policy first, each once and with its id, a page at a time; a new version moves nothing."""
    for name in ("a", "b", "c"):
        await policies.save(MINE, at(0.1, name))
    await policies.save(MINE, at(0.2, "a"))
    await policies.save("other", at(0.3, "theirs"))
    found = await policies.list(MINE)
    assert [(each["id"], each["sampling"]["temperature"]) for each in found] == [
        ("c", 0.1),
        ("b", 0.1),
        ("a", 0.2),
    ]
    assert [each["id"] for each in await policies.list(MINE, limit=1, offset=1)] == ["b"]
    assert [each["id"] for each in await policies.list(MINE, offset=2)] == ["a"]


async def test_a_deleted_policy_is_gone_with_its_versions(policies, store):
    """Deleting is at once and leaves no version behind; the id is free again, and counts from 1."""
    await policies.save(MINE, at(0.1, "bot"))
    await policies.save(MINE, at(0.2, "bot"))
    await policies.delete(MINE, "bot")
    for attempt in (
        policies.get(MINE, "bot", 1),
        policies.versions(MINE, "bot"),
        policies.delete(MINE, "bot"),
    ):
        with pytest.raises(NotFound):
            await attempt
    async with store.database.reading() as connection:
        assert (await connection.execute(text("SELECT count(*) FROM policy_versions"))).scalar() == 0
    assert (await policies.save("other", at(0.3, "bot"))).version == 1


@pytest.mark.parametrize("exists", [False, True])
async def test_racing_saves_lose_no_version(policies, database_url, exists):
    """Processes that save one id at once get consecutive versions, and each version holds what was sent."""
    if exists:
        await policies.save(MINE, at(0, "bot"))
    databases = [Database(database_url) for _ in range(4)]
    racers = [Policies(database) for database in databases] * 6
    await asyncio.gather(*(each.list(MINE) for each in racers))  # so that all have a connection
    sent = [at((index + 1) / 100, "bot") for index in range(len(racers))]
    saved = await asyncio.gather(*(each.save(MINE, one) for each, one in zip(racers, sent, strict=True)))
    for database in databases:
        await database.close()
    first = 2 if exists else 1
    assert sorted(each.version for each in saved) == list(range(first, first + len(racers)))
    for index, each in enumerate(saved):
        found = await policies.get(MINE, "bot", each.version)
        assert found.policy.sampling.temperature == (index + 1) / 100
    assert (await policies.get(MINE, "bot")).version == first + len(racers) - 1
    assert len(await policies.versions(MINE, "bot")) == len(racers) + exists


async def test_racing_accounts_do_not_meet(policies, database_url):
    """Two accounts that save one id at once get a policy each, with consecutive versions of their own."""
    databases = [Database(database_url) for _ in range(6)]
    accounts = [MINE, "other"] * 3
    racers = [Policies(database) for database in databases]
    await asyncio.gather(*(each.list(MINE) for each in racers))
    saves = (each.save(account, at(0.1, "bot")) for each, account in zip(racers, accounts, strict=True))
    saved = await asyncio.gather(*saves)
    for database in databases:
        await database.close()
    for account in (MINE, "other"):
        of_account = [one.version for one, owner in zip(saved, accounts, strict=True) if owner == account]
        assert sorted(of_account) == [1, 2, 3]


async def test_saving_while_deleting_is_one_or_the_other(policies, database_url):
    """A save beside a delete fails neither, and what is left afterwards is a policy with all its versions."""
    databases = [Database(database_url) for _ in range(6)]
    racers = [Policies(database) for database in databases]
    await asyncio.gather(*(each.list(MINE) for each in racers))
    for _ in range(5):
        await policies.save(MINE, at(0.1, "bot"))
        actions = [
            each.save(MINE, at(0.2, "bot")) if index % 2 else each.delete(MINE, "bot")
            for index, each in enumerate(racers)
        ]
        outcomes = await asyncio.gather(*actions, return_exceptions=True)
        assert all(isinstance(outcome, NotFound) for outcome in outcomes if isinstance(outcome, Exception))
        for record in await policies.list(MINE):
            count = len(await policies.versions(MINE, record["id"]))
            assert (await policies.get(MINE, record["id"])).version == count
    for database in databases:
        await database.close()


async def test_a_policy_may_be_too_long(policies):
    """Up to the limit of bytes a policy is stored, beyond it the error names the policy and the limit."""
    frame = len('{"metadata": {"x": ""}}')
    saved = await policies.save(MINE, policy(metadata={"x": "ä" * ((MAX_BYTES - frame) // 2)}))
    assert await policies.get(MINE, saved.id) == saved
    long = policy(metadata={"x": "x" * (MAX_BYTES - frame + 1)})
    for attempt in (policies.save(MINE, long), policies.publish(MINE, None, name="n", policy=long)):
        with pytest.raises(InvalidRequest, match=f"at most {MAX_BYTES} bytes, not {MAX_BYTES + 1}") as caught:
            await attempt
        assert caught.value.param == "policy"


async def test_an_infinite_number_is_refused(policies):
    """What no JSON can hold is refused on every database, and not stored as something else."""
    with pytest.raises(InvalidRequest, match="not JSON"):
        await policies.save(MINE, policy(metadata={"x": float("inf")}))


async def test_a_policy_of_another_version_is_named(policies, store):
    """What this version does not understand is a conflict that names the field; the list still has it, and
    saving it anew mends it."""
    await policies.save(MINE, at(0.1, "bot"))
    await age(store, "policy_versions")
    await policies.save(MINE, at(0.1, "sound"))
    with pytest.raises(Conflict, match=r"'bot' \(version 1\).*sampling\.swing: unknown field") as caught:
        await policies.get(MINE, "bot")
    assert caught.value.reason == "policy_of_another_version"
    assert [each["id"] for each in await policies.list(MINE)] == ["sound", "bot"]
    assert (await policies.list(MINE))[1]["sampling"] == {"swing": 1}
    assert len(await policies.versions(MINE, "bot")) == 1
    await policies.save(MINE, at(0.3, "bot"))
    assert (await policies.get(MINE, "bot")).version == 2
    with pytest.raises(Conflict):
        await policies.get(MINE, "bot", 1)


async def explained(database, statement, parameters):
    """How the database would run a query, if it had rows enough for an index to pay."""
    plan = "EXPLAIN QUERY PLAN" if database.url.get_backend_name() == "sqlite" else "EXPLAIN"
    async with database.writing() as connection:
        if plan == "EXPLAIN":
            await connection.execute(text("SET LOCAL enable_seqscan = off"))
        rows = (await connection.exec_driver_sql(f"{plan} {statement}", parameters)).all()
    return "\n".join(str(row[-1]) for row in rows)


async def test_a_policy_is_found_by_one_indexed_query(policies, store):
    """Reading a policy by id asks the database once, and neither table is read through."""
    await policies.save(MINE, at(0.1, "bot"))
    seen = []
    engine = store.database._engine.sync_engine

    def note(connection, cursor, statement, parameters, *_):
        if statement.startswith("SELECT"):
            seen.append((statement, parameters))

    event.listen(engine, "before_cursor_execute", note)
    for version in (None, 1):
        await policies.get(MINE, "bot", version)
    event.remove(engine, "before_cursor_execute", note)
    assert len(seen) == 2
    for statement, parameters in seen:
        plan = await explained(store.database, statement, parameters)
        assert "scan" not in plan.lower().replace("index scan", "").replace("bitmap heap scan", ""), plan
        assert "policies" in plan
        assert "policy_versions" in plan


async def test_a_preset_is_published_as_a_copy(policies):
    """It holds what is known of it, without the policy's id, and later versions leave it alone."""
    saved = await policies.save(MINE, policy(**SENT))
    preset_id = await policies.publish(
        MINE,
        None,
        name="n",
        policy=saved.policy,
        visibility=Visibility.PUBLIC,
        tags=["x", "ä\0"],
        description="d",
    )
    await policies.save(MINE, at(0.1, saved.id))
    found = await policies.preset(MINE, preset_id)
    assert found.policy == SENT
    assert (found.id, found.name, found.visibility) == (preset_id, "n", "public")
    assert (found.tags, found.description, found.api_key_id) == (("x", "ä\0"), "d", None)
    assert found.updated_at.utcoffset().total_seconds() == 0
    assert await policies.presets(MINE) == [found]


async def test_a_preset_is_seen_as_its_owner_wants(policies, store):
    """Private: by the owner alone. Public: by all who ask for public ones, and only the owner deletes it."""
    [key] = await store.list_keys(MINE)
    hidden = await policies.publish(MINE, key.id, name="hidden", policy=at(0.1))
    shown = await policies.publish(MINE, key.id, name="shown", policy=at(0.2), visibility=Visibility.PUBLIC)
    theirs = await policies.publish("other", None, name="theirs", policy=at(0.3))

    async def listed(account, **fields):
        return [each.id for each in await policies.presets(account, **fields)]

    assert await listed(MINE) == [shown, hidden]
    assert await listed(MINE, include_public=False) == [shown, hidden]
    assert await listed(MINE, limit=1, offset=1) == [hidden]
    assert await listed("other") == [theirs, shown]
    newer = await policies.publish(MINE, key.id, name="n", policy=at(0.4), visibility=Visibility.PUBLIC)
    assert await listed("other") == [theirs, newer, shown]  # one's own first, though it is older
    await policies.delete_preset(MINE, newer)
    assert await listed("other", include_public=False) == [theirs]
    assert (await policies.preset(MINE, shown)).api_key_id == key.id
    assert (await policies.preset("other", shown)).api_key_id is None
    for attempt in (
        policies.preset("other", hidden),
        policies.clone("other", hidden),
        policies.delete_preset("other", hidden),
        policies.delete_preset("other", shown),
        policies.preset(MINE, theirs),
        policies.preset(MINE, "nothing"),
    ):
        with pytest.raises(NotFound):
            await attempt
    await policies.delete_preset(MINE, shown)
    assert await listed("other") == [theirs]
    with pytest.raises(NotFound):
        await policies.delete_preset(MINE, shown)


async def test_a_clone_is_one_s_own(policies):
    """Cloning stores the policy under a new id of the account that clones, which outlives the preset."""
    preset_id = await policies.publish(
        MINE, None, name="n", policy=policy(id="bot", **SENT), visibility=Visibility.PUBLIC
    )
    cloned = [await policies.clone("other", preset_id) for _ in range(2)]
    assert len({*cloned, "bot"}) == 3
    await policies.delete_preset(MINE, preset_id)
    for policy_id in cloned:
        found = await policies.get("other", policy_id)
        assert (found.version, plain(found.policy)) == (1, {"id": policy_id, **SENT})
    with pytest.raises(NotFound):
        await policies.get(MINE, cloned[0])


async def test_a_preset_of_another_version_is_not_cloned(policies, store):
    """It is listed as it is stored; cloning it is a conflict that names the field, and stores nothing."""
    preset_id = await policies.publish(MINE, None, name="n", policy=at(0.1))
    await age(store, "policy_presets")
    assert [each.policy["sampling"] for each in await policies.presets(MINE)] == [{"swing": 1}]
    with pytest.raises(Conflict, match=r"sampling\.swing: unknown field"):
        await policies.clone(MINE, preset_id)
    assert await policies.list(MINE) == []


async def test_accounts_and_keys_take_along_what_hangs_on_them(policies, store):
    """With an account go its policies and presets; without its key a preset stays."""
    [key] = await store.list_keys(MINE)
    await policies.save("other", at(0.1, "theirs"))
    await policies.publish("other", None, name="theirs", policy=at(0.1), visibility=Visibility.PUBLIC)
    mine = await policies.publish(MINE, key.id, name="mine", policy=at(0.1))
    await change(store, "DELETE FROM accounts WHERE id = 'other'")
    await change(store, "DELETE FROM api_keys")
    assert await policies.list("other") == []
    [left] = await policies.presets(MINE)
    assert (left.id, left.api_key_id) == (mine, None)


async def test_an_account_has_so_many(policies, monkeypatch):
    """Beyond the limits saving, cloning and publishing are conflicts that say what to delete; what is there
    stays, other accounts have room of their own, and what is deleted makes room."""
    for name in ("MAX_POLICIES", "MAX_VERSIONS", "MAX_PRESETS"):
        monkeypatch.setattr(module, name, 2)
    for _ in range(2):
        await policies.save(MINE, at(0.1, "a"))
    await policies.save(MINE, at(0.2, "b"))
    for _ in range(2):
        preset_id = await policies.publish(MINE, None, name="n", policy=at(0.1))
    for attempt, what in (
        (policies.save(MINE, at(0.3, "a")), "2 versions; delete /policies/a"),
        (policies.save(MINE, at(0.3, "c")), "2 policies; make room with DELETE /policies/{id}"),
        (policies.clone(MINE, preset_id), "2 policies"),
        (policies.publish(MINE, None, name="n", policy=at(0.3)), "2 presets; make room with DELETE"),
    ):
        with pytest.raises(Conflict, match=re.escape(what)) as caught:
            await attempt
        assert caught.value.reason == "too_many"
    assert [each["id"] for each in await policies.list(MINE)] == ["b", "a"]
    assert (await policies.get(MINE, "a")).version == 2
    assert len(await policies.presets(MINE)) == 2
    assert (await policies.save(MINE, at(0.3, "b"))).version == 2
    await policies.save("other", at(0.1))
    await policies.publish("other", None, name="n", policy=at(0.1))
    await policies.delete(MINE, "a")
    await policies.delete_preset(MINE, preset_id)
    assert (await policies.save(MINE, at(0.1, "a"))).version == 1
    await policies.publish(MINE, None, name="n", policy=at(0.1))


async def test_a_page_has_so_many_bytes(policies, monkeypatch):
    """It ends before it is too long, holds one item at least, and says whether others follow."""
    for name in "abc":
        await policies.save(MINE, policy(id=name, metadata={"x": "x" * 100}))
        await policies.publish(MINE, None, name=name, policy=policy(metadata={"x": "x" * 100}))

    async def pages(read, size):
        monkeypatch.setattr(module, "MAX_PAGE_BYTES", size)
        found, offset = [], 0
        while not found or found[-1][1]:
            page = await read(MINE, offset=offset, limit=10)
            found.append((len(page), page.more))
            offset += len(page)
        return found

    for read in (policies.list, policies.presets):
        assert await pages(read, 1) == [(1, True), (1, True), (1, False)]
        assert await pages(read, 300) == [(2, True), (1, False)]
        assert await pages(read, 1000) == [(3, False)]
        page = await read(MINE, limit=2)
        assert (len(page), page.more) == (2, True)
        page = await read(MINE, limit=3)
        assert (len(page), page.more) == (3, False)
