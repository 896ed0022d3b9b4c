"""Writes Grafana's dashboards, from the panels of boards.py, to helm/files/dashboards.

Run it after a change: `python deploy/grafana/dashboards.py`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from boards import DASHBOARDS
from panel import Dashboard, Panel

OUT = Path(__file__).resolve().parents[2] / "helm/files/dashboards"
PROMETHEUS = {"type": "prometheus", "uid": "${datasource}"}
POSTGRES = {"type": "grafana-postgresql-datasource", "uid": "${postgres}"}
COLUMNS = 24


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
