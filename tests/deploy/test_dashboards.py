"""Grafana's dashboards, as far as they can be checked without Grafana."""

import asyncio
import json
import uuid
from collections.abc import Iterator
from typing import Any

import asyncpg
import pytest

from server.store import Store
from tests.deploy import names, promql
from tests.deploy.chart import documents
from tests.deploy.tools import ROOT, script

BOARDS = script("deploy/grafana/dashboards.py")
OUT = BOARDS.OUT
FILES = sorted(OUT.glob("*.json"))


def panels(board: Any) -> list[Any]:
    return [panel for panel in board["panels"] if panel["type"] != "row"]


def queries(kind: str) -> list[Any]:
    return list(_queries(kind))


def _queries(kind: str) -> Iterator[Any]:
    for path in FILES:
        for panel in panels(json.loads(path.read_text())):
            for target in panel["targets"]:
                if kind in target:
                    yield pytest.param(target[kind], id=f"{path.stem}: {panel['title']} {target['refId']}")


def test_the_files_are_what_the_script_writes():
    """The committed JSON is the list of panels as it stands; the script writes it anew."""
    assert {path.stem: path.read_text() for path in FILES} == {
        name: BOARDS.written(name, board) for name, board in BOARDS.DASHBOARDS.items()
    }


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_is_sound(path):
    """Ids are unique, panels do not overlap; data sources, namespace and model are variables."""
    board = json.loads(path.read_text())
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids)
    taken = [
        (x, y)
        for panel in board["panels"]
        for at in [panel["gridPos"]]
        for x in range(at["x"], at["x"] + at["w"])
        for y in range(at["y"], at["y"] + at["h"])
    ]
    assert len(set(taken)) == len(taken)
    assert max(x for x, _ in taken) < 24
    variables = {each["name"]: each["type"] for each in board["templating"]["list"]}
    assert variables["datasource"] == "datasource"
    assert {"namespace", "model"} <= variables.keys()
    for panel in panels(board):
        assert panel["datasource"]["uid"].strip("${}") in variables
        assert panel["targets"]


@pytest.mark.parametrize("expression", queries("expr"))
def test_a_panel_asks_for_series_and_labels_that_exist(expression):
    """Every series is Steersman's or vLLM's, grouped by labels that it has, within the chosen namespace."""
    assert promql.faults(expression) == []
    for selector in promql.selectors(expression):
        matched = {matcher.name for matcher in selector.matchers.matchers}
        assert "namespace" in matched
        if selector.name in names.ours():
            assert promql.grouped(expression) <= names.ours()[selector.name] | names.ADDED
        elif selector.name.startswith("vllm:"):
            assert "model_name" in matched


def test_the_four_boards_cover_every_metric_of_ours():
    """What the server counts, somebody can see; build_info is a number of replicas."""
    seen = {
        selector.name for parameter in queries("expr") for selector in promql.selectors(parameter.values[0])
    }
    bases = {
        name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name in names.ours()
    }
    unseen = {base for base in bases if not any(name.startswith(base) for name in seen)}
    assert unseen == {"steersman_observed_dropped_total"}, "alerted on, and rare"
    assert {path.stem for path in FILES} == {"overview", "steering", "policies", "tenants"}


@pytest.mark.parametrize("query", queries("rawSql"))
def test_a_table_reads_the_database_as_its_reader(query, readable):
    """The dashboard's SQL runs in PostgreSQL, by the role that may read nothing else."""
    assert len(readable(query)) <= 50


@pytest.mark.parametrize(
    "query",
    [
        "SELECT hash FROM api_keys",
        "SELECT password_hash FROM logins",
        "SELECT * FROM interactions",
        "DELETE FROM api_keys",
    ],
)
def test_the_reader_sees_no_secret(query, readable):
    """The role for dashboards reads no hash, no password, no text, and writes nothing."""
    with pytest.raises(Exception, match="permission denied"):
        readable(query)


@pytest.fixture
def readable(postgres):
    """Runs SQL as the role that deploy/postgres/reader.sql makes, in a migrated database with a key."""
    name = f"test_{uuid.uuid4().hex}"
    postgres.psql(f"CREATE DATABASE {name}")
    url = postgres.get_uri(database=name)
    Store(url).migrate()

    async def prepare():
        store = Store(url)
        await store.create_key(None, "a key")
        await store.close()
        connection = await asyncpg.connect(url)
        for _ in range(2):  # running it again changes nothing
            await connection.execute((ROOT / "deploy/postgres/reader.sql").read_text())
        await connection.close()

    async def ask(query):
        connection = await asyncpg.connect(url)
        try:
            await connection.execute("SET ROLE grafana")
            return await connection.fetch(query)
        finally:
            await connection.close()

    asyncio.run(prepare())
    return lambda query: asyncio.run(ask(query))


def test_the_chart_ships_every_dashboard():
    """A ConfigMap each, with the label that Grafana's sidecar looks for, small enough for one."""
    shipped = [
        each
        for each in documents("monitoring")
        if each["kind"] == "ConfigMap" and each["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    assert len(shipped) == len(FILES)
    for each in shipped:
        ((name, board),) = each["data"].items()
        assert json.loads(board) == json.loads((OUT / name).read_text())
        assert len(board) < 900_000
