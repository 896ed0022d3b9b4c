"""What of a project's models can be changed, and what was decided when the server started."""

import pytest

from server.graphql.model_services import Services
from server.graphql.models import CapabilityFilter, Catalog, ModelCapabilityFilter, ModelOnline
from server.projects import Project
from server.store import DEFAULT_ACCOUNT
from tests.server.graphql.conftest import ADAPTER, BASE, SLASHED, served
from tests.server.graphql.documents import ADD, DEPLOY, PROJECT, REMOVE, TERMINATE, UPDATE, failure
from tests.server.test_interactions import NOW

MODELS = "query M($filter: ModelFilter!) { models(filter: $filter) { key } }"
DRAFT = {"numDraftSteps": 2}
DEFAULT = {"project": "default"}


@pytest.mark.parametrize(
    ("query", "given", "param"),
    [
        (DEPLOY, {**DEFAULT, "model": BASE, "placement": {"computePools": []}}, "placement"),
        (
            DEPLOY,
            {**DEFAULT, "model": BASE, "speculativeDecoding": {"numDraftSteps": 2}},
            "speculativeDecoding",
        ),
        (UPDATE, {**DEFAULT, "modelService": BASE, "desiredOnline": False}, "desiredOnline"),
        (UPDATE, {**DEFAULT, "modelService": BASE, "toolProviders": []}, "toolProviders"),
        (UPDATE, {**DEFAULT, "modelService": BASE, "systemPromptTemplate": {}}, "systemPromptTemplate"),
        (UPDATE, {**DEFAULT, "modelService": BASE, "placement": {"computePools": ["a"]}}, "placement"),
        (PROJECT, {"name": "x", "gradientColor": "red"}, "gradientColor"),
        (PROJECT, {"name": "x", "widgets": []}, "widgets"),
        (PROJECT, {"name": "x", "settings": {"defaultMetric": "m"}}, "settings.defaultMetric"),
        (PROJECT, {"name": "x", "team": "everybody"}, "team"),
    ],
)
async def test_what_cannot_take_effect_is_refused_by_name(world, query, given, param):
    answer = await world.ask(query, input=given)
    assert answer["errors"][0]["extensions"]["param"] == param, answer


async def test_models_are_not_found_by_their_sizes(world):
    """Which nobody knows; nulls ask for nothing."""
    assert "sizes" in failure(await world.ask(MODELS, filter={"size": {"gt": 1}}))
    assert len((await world.ask(MODELS, filter={"size": None, "online": None}))["data"]["models"]) == 3


async def test_what_is_served_is_chosen_at_the_start(world):
    """Nothing is deployed, nothing terminated; a model that is not there is not found."""
    assert "chosen when the server starts" in failure(await world.ask(TERMINATE, input=BASE))
    unserved = failure(await world.ask(DEPLOY, input={**DEFAULT, "model": "gpt-2"}))
    assert unserved.startswith("EntityNotFound: model 'gpt-2'")
    assert "chosen when the server starts" in unserved
    gone = failure(await world.ask(TERMINATE, input="gpt-2"))
    assert gone.startswith("EntityNotFound: model 'gpt-2'")


async def test_a_projects_default_model_is_not_removed(world):
    await world.ask(ADD, input={**DEFAULT, "models": [BASE]})
    await world.directory.projects.set_default_model(DEFAULT_ACCOUNT, BASE)
    assert "default model" in failure(await world.ask(REMOVE, input={**DEFAULT, "model": BASE}))
    assert await world.directory.aliases.get(DEFAULT_ACCOUNT, BASE) is not None


async def test_what_is_not_attached_is_not_changed(world):
    """Though it is served."""
    for query, given in ((UPDATE, {"modelService": BASE, "isDefault": True}), (REMOVE, {"model": BASE})):
        message = failure(await world.ask(query, input={**DEFAULT, **given}))
        assert message == f"EntityNotFound: model {BASE!r} is not attached"


async def test_a_name_that_means_something_else_is_not_taken(world):
    """`acme/tiny` would be called `tiny`, which is another model here."""
    await world.directory.aliases.put(DEFAULT_ACCOUNT, "tiny", model=BASE, defaults={"temperature": 0})
    query = "mutation A($input: AddModelsToProjectInput!) { addModelsToProject(input: $input) {"
    answer = await world.ask(
        query + " success failures { model reason } } }", input={**DEFAULT, "models": [SLASHED]}
    )
    told = answer["data"]["addModelsToProject"]
    assert (told["success"], told["failures"][0]["model"]) == (False, SLASHED)
    assert "'tiny'" in told["failures"][0]["reason"]


async def test_an_alias_of_a_model_that_is_served_no_longer_is_offline(world):
    await world.directory.aliases.put(DEFAULT_ACCOUNT, "old", model="gone", defaults={})
    await world.directory.projects.set_default_model(DEFAULT_ACCOUNT, "old")
    aliases = await world.directory.aliases.of([DEFAULT_ACCOUNT])
    catalog = Catalog(served(), aliases)
    model = catalog.find("old")
    assert (model.online, model.error, model.backbone) == (ModelOnline.OFFLINE, "'gone' is not served", None)
    project = Project(DEFAULT_ACCOUNT, "default", "Default", None, "old", NOW)
    (service,) = Services(catalog, project, aliases[DEFAULT_ACCOUNT]).all()
    assert (service.key, service.is_default, service.model.online) == ("old", True, ModelOnline.OFFLINE)


def test_what_answered_is_known_by_any_of_its_names():
    """A request may have named a project, alone or before its model; what is gone keeps its name."""
    catalog = Catalog(served(), {})
    for names, key, online in (
        ((BASE,), BASE, ModelOnline.ONLINE),
        ((f"default/{ADAPTER}",), ADAPTER, ModelOnline.ONLINE),
        (("support", SLASHED), SLASHED, ModelOnline.ONLINE),
        (("support", "gone"), "gone", ModelOnline.OFFLINE),
    ):
        model = catalog.answered(names, DEFAULT_ACCOUNT)
        assert (model.key, model.online) == (key, online)
    assert catalog.answered((), DEFAULT_ACCOUNT) is None


def test_a_model_that_takes_images_says_so():
    wanted = CapabilityFilter(all=[ModelCapabilityFilter.IMAGE_UNDERSTANDING])
    assert wanted.admits(Catalog(served(modalities=frozenset({"image"})), {}).capabilities())
    assert not wanted.admits(Catalog(served(), {}).capabilities())
