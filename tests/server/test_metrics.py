"""Steersman's own metrics: names and labels that dashboards and alerts rely on."""

import shutil
import subprocess
import sys

import pytest
from prometheus_client import REGISTRY, CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from server import metrics

CONTRACT = {
    # name on /metrics: (type, labels)
    "steersman_sampling_requests_total": ("counter", ["method"]),
    "steersman_constraint_requests_total": ("counter", ["type", "outcome"]),
    "steersman_auth_attempts_total": ("counter", ["method", "outcome"]),
    "steersman_rate_limited_total": ("counter", ["limit"]),
    "steersman_http_request_duration_seconds": ("histogram", ["method", "route", "status"]),
    "steersman_steering_requests_total": ("counter", ["operation"]),
    "steersman_steered_tokens_total": ("counter", ["phase"]),
    "steersman_steering_rows_used": ("gauge", []),
    "steersman_sae_drift_score": ("histogram", ["behavior"]),
    "steersman_behavior_corrections_total": ("counter", ["behavior", "mode"]),
    "steersman_policy_decisions_total": ("counter", ["outcome"]),
    "steersman_policy_duration_seconds": ("histogram", []),
    "steersman_verifier_runs_total": ("counter", ["verifier", "outcome"]),
    "steersman_sandbox_runs_total": ("counter", ["outcome"]),
    "steersman_sandbox_seconds": ("histogram", []),
    "steersman_sandbox_idle": ("gauge", []),
    "steersman_database_failures_total": ("counter", []),
    "steersman_observed_dropped_total": ("counter", []),
    "steersman_interactions_dropped_total": ("counter", ["reason"]),
    "steersman_constraint_compile_duration_seconds": ("histogram", ["type"]),
    "steersman_constraint_cache_hits_total": ("counter", []),
    "steersman_constraint_cache_misses_total": ("counter", []),
    "steersman_steering_rows": ("gauge", []),
    "steersman_steering_vectors_loaded": ("gauge", []),
    "steersman_steering_dose_ratio": ("histogram", []),
    "steersman_steering_errors_total": ("counter", ["reason"]),
    "steersman_policy_errors_total": ("counter", ["stage"]),
    "steersman_verifier_duration_seconds": ("histogram", ["verifier"]),
    "steersman_verifier_score_ratio": ("histogram", []),
    "steersman_tenant_requests_total": ("counter", ["tenant", "outcome"]),
    "steersman_tenant_tokens_total": ("counter", ["tenant", "type"]),
    "steersman_draining": ("gauge", []),
    "steersman_config_info": (
        "gauge",
        ["accounts", "interactions", "behavior_mode", "steering", "tracing"],
    ),
    "steersman_build_info": ("gauge", ["version", "vllm"]),
}
OURS = tuple(made for made in vars(metrics).values() if isinstance(made, MetricWrapperBase))


def exposition() -> str:
    """Our metrics alone, each with a sample, as /metrics would write them."""
    registry = CollectorRegistry()
    for metric in OURS:
        if metric._labelnames:
            metric.labels(*["x"] * len(metric._labelnames))
        registry.register(metric)
    return generate_latest(registry).decode()


def test_names_types_and_labels():
    """Each metric has the documented name, type and labels, and there are no others of our own."""
    found = {}
    for family in text_string_to_metric_families(exposition()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.endswith("_created"):
            continue  # the client library's own
        found[name] = (family.type, {label for s in family.samples for label in s.labels} - {"le"})
        assert family.documentation
    assert found == {name: (kind, set(labels)) for name, (kind, labels) in CONTRACT.items()}


def test_all_are_exposed():
    """Every metric stands in the registry that /metrics reads, and no other of our name beside them."""
    names = {
        name
        for collector, names in REGISTRY._collector_to_names.items()
        if collector in OURS
        for name in names
    }
    assert set(CONTRACT) <= names
    assert {name for name in REGISTRY._names_to_collectors if name.startswith("steersman_")} <= names


def test_durations_cover_a_long_stream():
    """The buckets reach from milliseconds to minutes, as tokens stream for long."""
    bounds = metrics.HTTP_DURATION._upper_bounds
    assert bounds[0] <= 0.01
    assert bounds[-2] >= 300
    assert bounds == sorted(bounds)


def test_build_info(monkeypatch):
    """The build metric is 1 under the installed versions; without an engine it says so."""
    monkeypatch.setattr(metrics, "version", {"steersman": "1.2.3"}.__getitem__)
    monkeypatch.setattr(metrics, "PackageNotFoundError", KeyError)
    metrics.record_build()
    labels = {"version": "1.2.3", "vllm": "unknown"}
    assert REGISTRY.get_sample_value("steersman_build_info", labels) == 1


def test_the_first_installed_name_counts():
    """An engine may be installed under either of its names."""
    assert metrics.package_version("no-such-package", "pytest") == pytest.__version__
    assert metrics.package_version("no-such-package") == "unknown"


def test_several_processes_share_one_build(tmp_path):
    """With several API servers the build metric is one series of 1, not one for each process."""
    program = (
        "from server.metrics import record_build; record_build()\n"
        "from prometheus_client import CollectorRegistry, generate_latest\n"
        "from prometheus_client.multiprocess import MultiProcessCollector\n"
        "registry = CollectorRegistry(); MultiProcessCollector(registry)\n"
        "print(generate_latest(registry).decode())\n"
    )
    command = [sys.executable, "-c", program]
    environ = {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": ":".join(filter(None, sys.path))}
    for _ in range(2):
        output = subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout
    samples = [line for line in output.splitlines() if line.startswith("steersman_build_info{")]
    assert len(samples) == 1
    assert samples[0].endswith(" 1.0")
    assert "pid=" not in samples[0]


def test_promtool_has_no_complaint():
    """Prometheus's own linter accepts the names, types and help texts."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("no promtool to check with: apt-get install prometheus")
    checked = subprocess.run(
        [promtool, "check", "metrics"],
        input=exposition(),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, "", "")
