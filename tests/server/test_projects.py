"""Projects and their members, on SQLite and PostgreSQL."""

import pytest

from server.aliases import Aliases
from server.auth import Principal
from server.errors import Conflict, Forbidden, InvalidRequest, NotFound
from server.logins import Logins
from server.projects import Projects
from server.roles import Role
from server.store import DEFAULT_ACCOUNT


@pytest.fixture
async def world(store):
    """A store with two people, Ada and Bob; `projects` knows nothing for longer than a moment."""
    logins = Logins(store.database)
    store.logins = logins
    store.ada = (await logins.add("ada@example.org", "hash")).id
    store.bob = (await logins.add("bob@example.org", "hash")).id
    store.projects = Projects(store.database, seconds=60)
    return store


def caller(account_id, limit=Role.OWNER):
    return Principal("key", account_id, None, "bound", limit=limit, role=limit)


@pytest.mark.parametrize("role", Role)
def test_a_role_allows_itself_and_what_is_less(role):
    """Owners may what members may, who may what readers may."""
    order = [Role.READER, Role.MEMBER, Role.OWNER]
    assert [role.allows(other) for other in order] == [i <= order.index(role) for i in range(3)]


@pytest.mark.parametrize("name", ["default", "own id"])
async def test_everybody_is_at_home_without_any_row(world, name):
    """An account's home has its id, is called default, and the account owns it."""
    membership = await world.projects.membership(world.ada, world.ada if name == "own id" else name)
    assert (membership.project.id, membership.project.key) == (world.ada, "default")
    assert membership.role is Role.OWNER


async def test_a_project_is_its_owner_s_alone_until_shared(world):
    """Nobody else finds it; a member does, with the role given."""
    project = await world.projects.create(world.ada, key="lab", name="The lab")
    with pytest.raises(NotFound):
        await world.projects.membership(world.bob, "lab")
    await world.projects.set_member(project.id, "bob@example.org", Role.READER)
    for name in ("lab", project.id):
        assert (await world.projects.membership(world.bob, name)).role is Role.READER
    keys = {
        who: [each.project.key for each in await world.projects.of(who)] for who in (world.ada, world.bob)
    }
    assert keys == {world.ada: ["default", "lab"], world.bob: ["default", "lab"]}
    await world.projects.remove_member(project.id, world.bob)
    with pytest.raises(NotFound):
        await world.projects.membership(world.bob, "lab")


async def test_who_enters_acts_within_the_project(world):
    """Its things, the caller's role there, no more than the credential's own; not the model bound at home."""
    project = await world.projects.create(world.ada, key="lab", name="The lab")
    inside = await world.projects.enter(caller(world.ada), "lab")
    assert (inside.account_id, inside.member_id, inside.role) == (project.id, world.ada, Role.OWNER)
    assert inside.selected_model is None
    limited = await world.projects.enter(caller(world.ada, Role.READER), "lab")
    assert limited.role is Role.READER
    with pytest.raises(Forbidden):
        await world.projects.enter(caller(world.ada, Role.READER), "lab", needs=Role.MEMBER)
    home = await world.projects.enter(inside, "default")
    assert home.account_id == world.ada


async def test_a_project_s_key_is_in_that_project_alone(world):
    """It is at home there, under the project's own key, and finds none of its maker's others."""
    project = await world.projects.create(world.ada, key="lab", name="The lab")
    await world.projects.create(world.ada, key="other", name="Other")
    key = (await world.create_key(project.id, "ci", Role.MEMBER)).key
    principal = await world.find_key(key)
    assert (principal.account_id, principal.role, principal.limit) == (project.id, Role.MEMBER, Role.MEMBER)
    for name in ("lab", "default"):
        entered = await world.projects.enter(principal, name)
        assert (entered.account_id, entered.role) == (project.id, Role.MEMBER)
    with pytest.raises(NotFound):
        await world.projects.enter(principal, "other")


@pytest.mark.parametrize("key", ["", "default", "home-x", "Lab", "a/b", "-a", "a-", "ü", "a" * 65, "a b"])
async def test_what_cannot_be_a_key_is_refused(world, key):
    with pytest.raises(InvalidRequest) as raised:
        await world.projects.create(world.ada, key=key, name="x")
    assert raised.value.param == "key"


async def test_keys_are_taken_once(world):
    """Whoever has it: a key means one project to everybody."""
    await world.projects.create(world.ada, key="lab", name="x")
    with pytest.raises(Conflict):
        await world.projects.create(world.bob, key="lab", name="x")


async def test_a_project_keeps_an_owner(world):
    """The last one can neither leave, nor become less, nor delete the account."""
    project = await world.projects.create(world.ada, key="lab", name="x")
    await world.projects.set_member(project.id, "bob@example.org", Role.MEMBER)
    with pytest.raises(Conflict):
        await world.projects.remove_member(project.id, world.ada)
    with pytest.raises(Conflict):
        await world.projects.set_member(project.id, "ada@example.org", Role.MEMBER)
    with pytest.raises(Conflict, match="lab"):
        await world.logins.delete(world.ada)
    await world.projects.set_member(project.id, "bob@example.org", Role.OWNER)
    await world.logins.delete(world.ada)
    assert [each.email for each in await world.projects.members(project.id)] == ["bob@example.org"]


async def test_a_home_is_shared_with_nobody(world):
    with pytest.raises(Forbidden):
        await world.projects.set_member(world.ada, "bob@example.org", Role.MEMBER)
    with pytest.raises(Forbidden):
        await world.projects.delete(world.ada)


async def test_nobody_logs_in_as_a_project(world):
    """Nor can one be a member of another."""
    project = await world.projects.create(world.ada, key="lab", name="x")
    other = await world.projects.create(world.ada, key="other", name="x")
    email = (await world.account(other.id)).email
    with pytest.raises(NotFound):
        await world.projects.set_member(project.id, email, Role.MEMBER)
    assert (await world.logins.find(email)).password_hash is None


async def test_a_project_owns_no_project(world):
    """Its end would leave the other one without an owner."""
    project = await world.projects.create(world.ada, key="lab", name="x")
    with pytest.raises(Forbidden):
        await world.projects.create(project.id, key="other", name="x")


async def test_a_deleted_project_takes_its_things_along(world):
    """Keys and aliases go; the people stay."""
    project = await world.projects.create(world.ada, key="lab", name="x")
    key = (await world.create_key(project.id, None)).key
    aliases = Aliases(world.database)
    await aliases.put(project.id, "mine", model="m", defaults={})
    await world.projects.delete(project.id)
    assert await world.find_key(key) is None
    assert await aliases.list(project.id) == []
    assert (await world.account(world.ada)).email == "ada@example.org"
    with pytest.raises(NotFound):
        await world.projects.membership(world.ada, "lab")


async def test_a_default_model_is_kept_for_homes_and_projects(world):
    """Also for the operator's own account, which the first key makes."""
    project = await world.projects.create(world.ada, key="lab", name="x", description="d")
    for project_id in (project.id, world.bob, DEFAULT_ACCOUNT):
        await world.projects.set_default_model(project_id, "alias")
        assert (await Projects(world.database).home(project_id)).default_model == "alias"
    renamed = await world.projects.rename(project.id, name="New", description=None)
    assert (renamed.key, renamed.name, renamed.description) == ("lab", "New", None)
    assert (await world.projects.home(world.bob)).key == "default"


async def test_an_alias_is_one_project_s(world):
    """Found by key and id, changed in place, not seen elsewhere."""
    aliases = Aliases(world.database, seconds=60)
    made = await aliases.put(world.ada, "calm", model="base", defaults={"temperature": 0.0})
    assert await aliases.get(world.ada, "calm") == await aliases.get(world.ada, made.id) == made
    assert await aliases.get(world.bob, "calm") is None
    changed = await aliases.put(world.ada, "calm", model="tuned", defaults={}, name="Calm")
    assert (changed.id, changed.model, changed.name) == (made.id, "tuned", "Calm")
    assert await aliases.get(world.ada, "calm") == changed
    with pytest.raises(NotFound):
        await aliases.delete(world.bob, "calm")
    await aliases.delete(world.ada, made.id)
    assert await aliases.get(world.ada, "calm") is None


@pytest.mark.parametrize("key", ["", "a/b", "/a", "a b", "-", "a" * 201])
async def test_an_alias_has_no_slash(world, key):
    with pytest.raises(InvalidRequest):
        await Aliases(world.database).put(world.ada, key, model="m", defaults={})


async def test_members_and_aliases_of_several_projects_are_read_together(world):
    """Each project's its own, in the order in which they are listed alone; homes have no members."""
    aliases = Aliases(world.database)
    made = [await world.projects.create(world.ada, key=key, name=key) for key in ("one", "two", "three")]
    await world.projects.set_member(made[1].id, "bob@example.org", Role.OWNER)
    await world.projects.set_member(made[2].id, "bob@example.org", Role.READER)
    for project, keys in zip(made, (("b", "a"), ("c",), ()), strict=True):
        for key in keys:
            await aliases.put(project.id, key, model="base", defaults={})
    asked = [made[0].id, made[1].id, world.ada]
    members = await world.projects.members_of(asked)
    assert {each: [member.email for member in members[each]] for each in members} == {
        made[0].id: ["ada@example.org"],
        made[1].id: ["ada@example.org", "bob@example.org"],
    }
    assert [each.email for each in await world.projects.members(made[2].id)] == [
        "ada@example.org",
        "bob@example.org",
    ]
    found = await aliases.of(asked)
    assert {each: [alias.key for alias in found[each]] for each in found} == {
        made[0].id: ["a", "b"],
        made[1].id: ["c"],
    }
    assert found[made[0].id] == await aliases.list(made[0].id)
