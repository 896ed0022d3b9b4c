"""A real Prometheus reads the running server while it works: dashboards, rules and alerts find data."""

import json
import math
import re
import shutil
import time

import httpx
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from tests.deploy import promql
from tests.deploy.scraping import asked, scraping
from tests.deploy.tools import ROOT
from tests.live.steered import noise

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
# Series that no sound server shows, and why.
CONDITIONAL = {
    "steersman_interactions_dropped_total": "a log that is full, or a defect",
    "steersman_observed_dropped_total": "more calls at once than can be written down",
}
SANDBOXED = shutil.which("bwrap") is not None
if not SANDBOXED:
    CONDITIONAL |= {
        "steersman_sandbox_runs_total": "no bubblewrap",
        "steersman_sandbox_seconds_bucket": "no bubblewrap",
    }
RULES = [
    rule
    for group in yaml.safe_load((ROOT / "helm/files/rules.yaml").read_text())["groups"]
    for rule in group["rules"]
]
RECORDED = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}


def panels():
    """Title and expression of every panel that asks Prometheus."""
    for path in sorted((ROOT / "helm/files/dashboards").glob("*.json")):
        for panel in json.loads(path.read_text())["panels"]:
            for target in panel.get("targets", ()):
                if "expr" in target:
                    yield f"{path.stem}: {panel['title']} {target['refId']}", target["expr"]


def filled(expression, seconds="1m"):
    """As Grafana sends it, with every namespace and model chosen."""
    chosen = re.sub(r"\$(namespace|model)\b", ".*", expression)
    return re.sub(r"\$__(rate_interval|interval|range)", seconds, chosen)


def named(expression):
    return {selector.name for selector in promql.selectors(expression)}


def ask_as(server, key):
    body = {"messages": [{"role": "user", "content": "x"}], "max_tokens": 1}
    return httpx.post(f"{server.url}{CHAT}", json=body, headers={"x-api-key": key}, timeout=60)


def traffic(ask, server, behaviour, limited, turn):
    """Something of every kind that a panel shows; `limited` is a key of one request a minute."""
    ask.chat()
    ask.chat(steering_vector=noise(1), steering_strength=0.5)
    ask.chat(regex_pattern=f"[ab]{{{turn + 1}}}")  # known already the second time
    ask.chat(regex_pattern=f"[ab]{{{turn + 1}}}", sampling_method="ads")
    verifiers = ["code_compile", "factuality", *(["unit_tests"] if SANDBOXED else [])]
    policy = {"verifiers": {"enabled": verifiers, "code_unit_tests": ["assert 1"]}}
    ask.ok("/policies/run", prompt="Name a fruit.", policy=policy, max_new_tokens=8)
    ask.ok("/policies/run", prompt="Name a fruit.", policy={}, max_new_tokens=4)
    watched = {"behavior_names": [behaviour["id"]], "force_steering": [behaviour["id"]]}
    ask.chat(**watched)
    ask.chat(store=True)
    messages = [{"role": "user", "content": "x"}]
    refusals = {
        400: {"json_schema": {"type": turn}},
        404: {"steering_vector_id": "00000000-0000-4000-8000-000000000001"},
    }
    for status, fields in refusals.items():
        assert ask.post(CHAT, messages=messages, **fields).status_code == status
    assert {ask_as(server, limited).status_code for _ in range(3)} == {200, 429}
    assert ask.post("/v1/embeddings", model="m", input="x").status_code == 501
    assert httpx.get(f"{server.url}/v1/models", headers={"x-api-key": "ax_bad"}).status_code == 401


@pytest.fixture(scope="module")
def limited(client):
    """A key for each turn of the traffic."""
    made = [client.post("/auth/api-keys", json={"requests_per_minute": 1}).json() for _ in range(2)]
    yield [each["api_key"] for each in made]
    for each in made:
        client.delete(f"/auth/api-keys/{each['id']}")


@pytest.fixture(scope="module")
def prometheus(server, ask, behaviour, limited, tmp_path_factory):
    """One that has read the page before, during and after some traffic."""
    with scraping(tmp_path_factory.mktemp("prometheus"), server.url.removeprefix("http://")) as address:
        assert asked(address, 'up{job="steersman"}') == [1]
        for turn in (1, 2):  # a counter that begins at 1 has not risen
            traffic(ask, server, behaviour, limited[turn - 1], turn)
            time.sleep(3)  # scrapes, and tenants that get their names
        yield address


def test_every_series_that_a_panel_or_rule_names_is_on_the_page(server, prometheus):
    """Under that very name; what is conditional is listed with its reason, and nothing else."""
    page = httpx.get(f"{server.url}/metrics", follow_redirects=True).text
    there = {sample.name for family in text_string_to_metric_families(page) for sample in family.samples}
    asks = [expression for _, expression in panels()] + [rule["expr"] for rule in RULES]
    missing = set().union(*map(named, asks)) - there - RECORDED.keys() - {"up"}
    assert missing <= CONDITIONAL.keys()


def test_every_panel_has_data(prometheus):
    """Each query of each dashboard comes to a number, but for what no sound server shows."""
    empty = {
        title
        for title, expression in panels()
        if not named(expression) & CONDITIONAL.keys()
        and not any(math.isfinite(value) for value in asked(prometheus, filled(expression), seconds=2))
    }
    assert empty == set()


def test_every_rule_has_data_and_none_fails(prometheus):
    """Recording rules record; alerts are evaluated on the server's own series, and nothing critical fires."""
    for name in RECORDED:
        assert any(math.isfinite(value) for value in asked(prometheus, name)), name
    groups = httpx.get(f"{prometheus}/rules").json()["data"]["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    assert len(rules) == len(RULES)
    assert [rule["name"] for rule in rules if rule["health"] != "ok"] == []
    assert asked(prometheus, 'ALERTS{severity="critical", alertstate="firing"}', seconds=0) == []


def test_tenants_are_told_apart_without_their_names(prometheus, server):
    """The tenant of the server's key has its tokens of both kinds, under a digest."""
    page = httpx.get(f"{server.url}/metrics", follow_redirects=True).text
    assert "@" not in page
    query = "sum by (type) (steersman_tenant_tokens_total{tenant!='other'})"
    assert len(asked(prometheus, query)) == 2
