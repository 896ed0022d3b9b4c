"""Writes Grafana's dashboards, from the panels listed here, to helm/files/dashboards.

Run it after a change: `python deploy/grafana/dashboards.py`.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

OUT = Path(__file__).resolve().parents[2] / "helm/files/dashboards"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
POSTGRES = {"type": "grafana-postgresql-datasource", "uid": "${postgres}"}
COLUMNS = 24

OURS = 'namespace=~"$namespace"'
ENGINE = 'namespace=~"$namespace",model_name=~"$model"'


@dataclass(frozen=True, slots=True)
class Panel:
    """`queries` are legend → PromQL, or SQL for a table without legend."""

    title: str
    queries: Mapping[str, str]
    unit: str = "short"
    kind: str = "timeseries"
    width: int = 8
    height: int = 8
    description: str = ""
    stacked: bool = False


@dataclass(frozen=True, slots=True)
class Dashboard:
    """Rows of panels, under a heading each."""

    title: str
    rows: Mapping[str, Sequence[Panel]] = field(default_factory=dict)
    postgres: bool = False


def rate(metric: str, where: str, by: str = "") -> str:
    grouped = f" by ({by})" if by else ""
    return f"sum{grouped} (rate({metric}{{{where}}}[$__rate_interval]))"


def share(metric: str, where: str, part: str, by: str = "") -> str:
    return f"{rate(metric, f'{where},{part}', by)} / {rate(metric, where, by)}"


def quantiles(metric: str, where: str, by: str = "") -> dict[str, str]:
    """The median and the slowest twentieth of a histogram."""
    grouped = ", ".join(filter(None, [by, "le"]))
    suffix = f" {{{{{by}}}}}" if by else ""
    return {
        f"p{int(q * 100)}{suffix}": f"histogram_quantile({q}, "
        f"sum by ({grouped}) (rate({metric}_bucket{{{where}}}[$__rate_interval])))"
        for q in (0.5, 0.95)
    }


HTTP = "steersman_http_request_duration_seconds"
OVERVIEW = Dashboard(
    "Steersman: overview",
    {
        "Now": [
            Panel("Replicas", {"": f"count(steersman_build_info{{{OURS}}})"}, kind="stat", width=4, height=4),
            Panel(
                "Requests", {"": rate(f"{HTTP}_count", OURS)}, unit="reqps", kind="stat", width=4, height=4
            ),
            Panel(
                "Answers that are 5xx",
                {"": share(f"{HTTP}_count", OURS, 'status=~"5.."')},
                unit="percentunit",
                kind="stat",
                width=4,
                height=4,
            ),
            Panel(
                "Tokens generated",
                {"": rate("vllm:generation_tokens_total", ENGINE)},
                unit="short",
                kind="stat",
                width=4,
                height=4,
                description="Per second.",
            ),
            Panel(
                "Waiting", {"": f"sum(vllm:num_requests_waiting{{{ENGINE}}})"}, kind="stat", width=4, height=4
            ),
            Panel(
                "KV cache",
                {"": f"max(vllm:kv_cache_usage_perc{{{ENGINE}}})"},
                unit="percentunit",
                kind="stat",
                width=4,
                height=4,
                description="Of the fullest engine.",
            ),
        ],
        "Traffic": [
            Panel("Requests by route", {"{{route}}": rate(f"{HTTP}_count", OURS, "route")}, unit="reqps"),
            Panel(
                "Answers by status",
                {"{{status}}": rate(f"{HTTP}_count", OURS, "status")},
                unit="reqps",
                stacked=True,
            ),
            Panel(
                "Ends of generations",
                {"{{finished_reason}}": rate("vllm:request_success_total", ENGINE, "finished_reason")},
                unit="reqps",
                stacked=True,
            ),
        ],
        "Latency": [
            Panel("Time to first token", quantiles("vllm:time_to_first_token_seconds", ENGINE), unit="s"),
            Panel("Time between tokens", quantiles("vllm:inter_token_latency_seconds", ENGINE), unit="s"),
            Panel("Whole request", quantiles("vllm:e2e_request_latency_seconds", ENGINE), unit="s"),
            Panel("Queue time", quantiles("vllm:request_queue_time_seconds", ENGINE), unit="s"),
            Panel("Prefill time", quantiles("vllm:request_prefill_time_seconds", ENGINE), unit="s"),
            Panel(
                "Answer by route, p95",
                {
                    "{{route}}": "histogram_quantile(0.95, sum by (route, le) "
                    f"(rate({HTTP}_bucket{{{OURS}}}[$__rate_interval])))"
                },
                unit="s",
            ),
        ],
        "Tokens": [
            Panel(
                "Tokens per second",
                {
                    "prompt": rate("vllm:prompt_tokens_total", ENGINE),
                    "generated": rate("vllm:generation_tokens_total", ENGINE),
                },
            ),
            Panel("Prompt length", quantiles("vllm:request_prompt_tokens", ENGINE)),
            Panel("Answer length", quantiles("vllm:request_generation_tokens", ENGINE)),
        ],
        "Queue and KV cache": [
            Panel(
                "Requests in the engine",
                {
                    "running": f"sum(vllm:num_requests_running{{{ENGINE}}})",
                    "waiting": f"sum(vllm:num_requests_waiting{{{ENGINE}}})",
                },
            ),
            Panel(
                "KV cache in use",
                {"{{instance}}": f"max by (instance) (vllm:kv_cache_usage_perc{{{ENGINE}}})"},
                unit="percentunit",
            ),
            Panel(
                "Prefix cache hits",
                {
                    "hits": f"{rate('vllm:prefix_cache_hits_total', ENGINE)} / "
                    f"{rate('vllm:prefix_cache_queries_total', ENGINE)}"
                },
                unit="percentunit",
            ),
            Panel("Interrupted requests", {"": rate("vllm:num_preemptions_total", ENGINE)}, unit="reqps"),
            Panel(
                "Turned away",
                {"{{reason}}": rate("vllm:admission_rejections_total", ENGINE, "reason")},
                unit="reqps",
                description="Where --max-num-queued-reqs or --max-num-queued-tokens is set.",
            ),
            Panel(
                "Memory of the API servers",
                {"{{instance}}": f'process_resident_memory_bytes{{job="steersman",{OURS}}}'},
                unit="bytes",
            ),
        ],
    },
)
DRIFT = "steersman_sae_drift_score"
BELOW_TWO = f'{OURS},le="2.0"'
STEERING = Dashboard(
    "Steersman: steering and behaviours",
    {
        "Steering": [
            Panel(
                "Vectors applied",
                {"{{operation}}": rate("steersman_steering_requests_total", OURS, "operation")},
                unit="ops",
            ),
            Panel(
                "Steered tokens per second",
                {"{{phase}}": rate("steersman_steered_tokens_total", OURS, "phase")},
            ),
            Panel(
                "Lines of the vector table in use",
                {"{{instance}}": f"steersman_steering_rows_used{{{OURS}}}"},
                description="Of --steering-rows; requests wait while there is no room.",
            ),
        ],
        "Behaviours": [
            Panel(
                "Drift, median and p95",
                quantiles("steersman_sae_drift_score", OURS, "behavior"),
                width=12,
                description="The highest of each answer, in standard deviations of texts without it.",
            ),
            Panel(
                "Answers over 2 standard deviations",
                {
                    "{{behavior}}": f"1 - {rate(f'{DRIFT}_bucket', BELOW_TWO, 'behavior')} / "
                    f"{rate(f'{DRIFT}_count', OURS, 'behavior')}"
                },
                unit="percentunit",
                width=12,
            ),
            Panel(
                "Watched answers",
                {"{{behavior}}": rate("steersman_sae_drift_score_count", OURS, "behavior")},
                unit="ops",
                width=12,
            ),
            Panel(
                "Corrections",
                {
                    "{{behavior}} {{mode}}": rate(
                        "steersman_behavior_corrections_total", OURS, "behavior, mode"
                    )
                },
                unit="ops",
                width=12,
            ),
        ],
    },
)
POLICIES = Dashboard(
    "Steersman: policies, verifiers and constraints",
    {
        "Policies": [
            Panel(
                "Policies run",
                {"{{outcome}}": rate("steersman_policy_decisions_total", OURS, "outcome")},
                unit="ops",
                stacked=True,
            ),
            Panel(
                "Without an accepted answer",
                {"": share("steersman_policy_decisions_total", OURS, 'outcome="rejected"')},
                unit="percentunit",
            ),
            Panel("Duration", quantiles("steersman_policy_duration_seconds", OURS), unit="s"),
        ],
        "Verifiers": [
            Panel(
                "Answers looked at",
                {
                    "{{verifier}} {{outcome}}": rate(
                        "steersman_verifier_runs_total", OURS, "verifier, outcome"
                    )
                },
                unit="ops",
                width=12,
            ),
            Panel(
                "Refused",
                {
                    "{{verifier}}": share(
                        "steersman_verifier_runs_total", OURS, 'outcome="failed"', "verifier"
                    )
                },
                unit="percentunit",
                width=12,
            ),
        ],
        "Sandbox": [
            Panel(
                "Runs of code",
                {"{{outcome}}": rate("steersman_sandbox_runs_total", OURS, "outcome")},
                unit="ops",
            ),
            Panel("Duration", quantiles("steersman_sandbox_seconds", OURS), unit="s"),
            Panel("Sandboxes that wait", {"{{instance}}": f"steersman_sandbox_idle{{{OURS}}}"}),
        ],
        "Decoding": [
            Panel(
                "Sampling methods",
                {"{{method}}": rate("steersman_sampling_requests_total", OURS, "method")},
                unit="reqps",
            ),
            Panel(
                "Constraints",
                {"{{type}} {{outcome}}": rate("steersman_constraint_requests_total", OURS, "type, outcome")},
                unit="reqps",
            ),
            Panel(
                "Constraints that do not compile",
                {"{{type}}": share("steersman_constraint_requests_total", OURS, 'outcome="refused"', "type")},
                unit="percentunit",
            ),
        ],
    },
)
USED = """(SELECT account_id, requests, prompt_tokens, completion_tokens, last_used FROM api_keys
  UNION ALL SELECT account_id, requests, prompt_tokens, completion_tokens, last_used FROM logins)"""
TENANTS = Dashboard(
    "Steersman: tenants",
    {
        "Usage": [
            Panel(
                "By account",
                {
                    "": f"""SELECT a.email AS account, sum(u.requests) AS requests,
  sum(u.prompt_tokens) AS "prompt tokens", sum(u.completion_tokens) AS "generated tokens",
  max(u.last_used) AS "last used"
FROM accounts a JOIN {USED} u ON u.account_id = a.id
GROUP BY a.id, a.email ORDER BY sum(u.prompt_tokens + u.completion_tokens) DESC LIMIT 50"""
                },
                kind="table",
                width=12,
                height=10,
                description="Since the account was made; the database has it, not Prometheus.",
            ),
            Panel(
                "By key",
                {
                    "": """SELECT a.email AS account, k.name AS key, k.requests,
  k.prompt_tokens AS "prompt tokens", k.completion_tokens AS "generated tokens", k.last_used AS "last used"
FROM api_keys k JOIN accounts a ON a.id = k.account_id WHERE k.revoked_at IS NULL
ORDER BY k.prompt_tokens + k.completion_tokens DESC LIMIT 50"""
                },
                kind="table",
                width=12,
                height=10,
            ),
            Panel(
                "Keys not used for 90 days",
                {
                    "": """SELECT a.email AS account, k.name AS key,
  k.created_at AS made, k.last_used AS "last used"
FROM api_keys k JOIN accounts a ON a.id = k.account_id
WHERE k.revoked_at IS NULL AND coalesce(k.last_used, k.created_at) < now() - interval '90 days'
ORDER BY 4 NULLS FIRST LIMIT 50"""
                },
                kind="table",
                width=12,
            ),
            Panel(
                "Accounts and keys",
                {
                    "": """SELECT (SELECT count(*) FROM accounts) AS accounts,
  (SELECT count(*) FROM api_keys WHERE revoked_at IS NULL) AS "keys in force"
"""
                },
                kind="table",
                width=12,
            ),
        ],
        "Access": [
            Panel(
                "Attempts by what was shown",
                {"{{method}} {{outcome}}": rate("steersman_auth_attempts_total", OURS, "method, outcome")},
                unit="reqps",
            ),
            Panel(
                "Refused: unknown, forbidden, too many",
                {
                    "{{status}} {{route}}": rate(
                        f"{HTTP}_count", OURS + ',status=~"401|403|429"', "status, route"
                    )
                },
                unit="reqps",
            ),
            Panel(
                "Chat completions not stored",
                {"{{reason}}": rate("steersman_interactions_dropped_total", OURS, "reason")},
                unit="ops",
            ),
        ],
    },
    postgres=True,
)
DASHBOARDS = {"overview": OVERVIEW, "steering": STEERING, "policies": POLICIES, "tenants": TENANTS}


def variable(name: str, **fields: Any) -> dict[str, Any]:
    return {"name": name, "hide": 0, "skipUrlSync": False} | fields


def chosen(name: str, query: str, label: str) -> dict[str, Any]:
    """A variable whose values Prometheus knows; all of them at first."""
    return variable(
        name,
        type="query",
        label=label,
        datasource=PROMETHEUS,
        query={"query": query, "refId": name},
        definition=query,
        refresh=2,
        includeAll=True,
        allValue=".*",
        multi=True,
        current={"text": "All", "value": "$__all"},
        sort=1,
    )


def variables(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    yield variable("datasource", type="datasource", label="Prometheus", query="prometheus")
    if dashboard.postgres:
        yield variable("postgres", type="datasource", label="Database", query="grafana-postgresql-datasource")
    yield chosen("namespace", "label_values(steersman_build_info, namespace)", "Namespace")
    yield chosen("model", "label_values(vllm:num_requests_running, model_name)", "Model")


def target(panel: Panel, legend: str, query: str, ref: str) -> dict[str, Any]:
    if panel.kind == "table":
        return {"refId": ref, "datasource": POSTGRES, "rawQuery": True, "rawSql": query, "format": "table"}
    return {"refId": ref, "datasource": PROMETHEUS, "expr": query, "legendFormat": legend or panel.title}


def drawn(panel: Panel, number: int, x: int, y: int) -> dict[str, Any]:
    targets = [
        target(panel, legend, query, chr(ord("A") + at))
        for at, (legend, query) in enumerate(panel.queries.items())
    ]
    custom = {"fillOpacity": 10, "showPoints": "never"} if panel.kind == "timeseries" else {}
    if panel.stacked:
        custom["stacking"] = {"mode": "normal"}
    return {
        "id": number,
        "title": panel.title,
        "description": panel.description,
        "type": panel.kind,
        "datasource": targets[0]["datasource"],
        "gridPos": {"x": x, "y": y, "w": panel.width, "h": panel.height},
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0, "custom": custom}, "overrides": []}
        if panel.kind != "table"
        else {"defaults": {}, "overrides": []},
        "options": {
            "legend": {"displayMode": "table", "placement": "bottom", "calcs": ["lastNotNull", "max"]}
        }
        if panel.kind == "timeseries"
        else {},
        "targets": targets,
    }


def panels(dashboard: Dashboard) -> Iterator[dict[str, Any]]:
    number, y = 0, 0
    for heading, row in dashboard.rows.items():
        number += 1
        yield {
            "id": number,
            "type": "row",
            "title": heading,
            "collapsed": False,
            "gridPos": {"x": 0, "y": y, "w": COLUMNS, "h": 1},
            "panels": [],
        }
        y, x, tallest = y + 1, 0, 0
        for panel in row:
            if x + panel.width > COLUMNS:
                x, y, tallest = 0, y + tallest, 0
            number += 1
            yield drawn(panel, number, x, y)
            x, tallest = x + panel.width, max(tallest, panel.height)
        y += tallest


def written(name: str, dashboard: Dashboard) -> str:
    """The JSON that Grafana reads."""
    made = {
        "uid": f"steersman-{name}",
        "title": dashboard.title,
        "tags": ["steersman"],
        "schemaVersion": 39,
        "editable": True,
        "refresh": "30s",
        "time": {"from": "now-1h", "to": "now"},
        "links": [{"type": "dashboards", "title": "Steersman", "tags": ["steersman"], "asDropdown": True}],
        "templating": {"list": list(variables(dashboard))},
        "panels": list(panels(dashboard)),
    }
    return json.dumps(made, indent=1) + "\n"


def main() -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for name, dashboard in DASHBOARDS.items():
        (OUT / f"{name}.json").write_text(written(name, dashboard))


if __name__ == "__main__":
    main()
