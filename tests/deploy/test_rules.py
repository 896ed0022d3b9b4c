"""Prometheus' rules: they fire, they stay silent, they name what exists."""

import re

import pytest
import yaml

from tests.deploy import names, promql
from tests.deploy.chart import only
from tests.deploy.tools import ROOT, run

RULES = ROOT / "helm/files/rules.yaml"
CASES = ROOT / "deploy/prometheus/rules_test.yaml"
RUNBOOK = ROOT / "deploy/prometheus/RUNBOOK.md"
ALL = [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]
ALERTS = [rule for rule in ALL if "alert" in rule]
RECORDED = frozenset(rule["record"] for rule in ALL if "record" in rule)


def test_the_rules_are_valid():
    """promtool takes every rule."""
    run("promtool", "check", "rules", RULES)


def test_alerts_fire_and_stay_silent():
    """promtool's cases pass: each alert with the text it sends, and without where nothing is wrong."""
    run("promtool", "test", "rules", CASES)


@pytest.mark.parametrize("alert", [rule["alert"] for rule in ALERTS])
def test_an_alert_has_both_cases(alert):
    """For every alert there is a case that expects it and one that expects it not."""
    expected = {
        bool(case.get("exp_alerts"))
        for test in yaml.safe_load(CASES.read_text())["tests"]
        for case in test.get("alert_rule_test", ())
        if case["alertname"] == alert
    }
    assert expected == {True, False}


@pytest.mark.parametrize("rule", ALL, ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_names_series_and_labels_that_exist(rule):
    """Every series is one of Steersman's, vLLM's or recorded by a rule, and no label of ours is made up."""
    assert promql.faults(rule["expr"], RECORDED) == []
    used = {selector.name for selector in promql.selectors(rule["expr"])}
    labels = names.ADDED.union(*(names.ours().get(name, _recorded_labels(name)) for name in used))
    if not any(name.startswith("vllm:") for name in used):
        assert promql.grouped(rule["expr"]) <= labels


def _recorded_labels(name):
    return next((promql.grouped(rule["expr"]) for rule in ALL if rule.get("record") == name), set())


def test_the_check_of_names_can_fail():
    """A series that is gone, a label that a series has not and a nameless selector are found."""
    assert promql.faults("rate(vllm:gpu_cache_usage_perc[5m])")
    assert promql.faults("rate(vllm:num_preemptions[5m]) > 0"), "without _total an alert could never fire"
    assert promql.faults('steersman_sandbox_runs_total{reason="x"}')
    assert promql.faults('{job="steersman"}')
    assert not promql.faults('rate(steersman_sandbox_runs_total{outcome="killed",namespace="n"}[5m])')


@pytest.mark.parametrize("rule", ALERTS, ids=lambda rule: rule["alert"])
def test_an_alert_leads_to_its_page(rule):
    """An alert has a severity, a summary and a section of the runbook of its own."""
    anchor = rule["annotations"]["runbook_url"].partition("#")[2]
    headings = {heading.lower() for heading in re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE)}
    assert anchor == rule["alert"].lower()
    assert anchor in headings
    assert rule["labels"]["severity"] in {"info", "warning", "critical"}
    assert rule["annotations"]["summary"]


def test_the_runbook_has_no_page_without_an_alert():
    """Every section belongs to an alert."""
    headings = re.findall(r"^## (\w+)$", RUNBOOK.read_text(), re.MULTILINE)
    assert sorted(headings) == sorted(rule["alert"] for rule in ALERTS)


def test_the_chart_ships_the_rules_as_they_are():
    """The PrometheusRule has every rule with its `{{ … }}` for Prometheus, and the runbook's own address."""
    spec = only("monitoring", "PrometheusRule", "t-steersman")["spec"]
    rules = [rule for group in spec["groups"] for rule in group["rules"]]
    assert [rule["expr"] for rule in rules] == [rule["expr"] for rule in ALL]
    for shipped, rule in zip(rules, ALL, strict=True):
        if "alert" in rule:
            assert shipped["annotations"]["summary"] == rule["annotations"]["summary"]
            url = shipped["annotations"]["runbook_url"]
            assert url.startswith("https://runbooks.example.com/steersman#")
