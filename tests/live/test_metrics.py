"""/metrics: vLLM's and ours on one page, counting right, in a form Prometheus' own linter accepts."""

import re
import shutil
import subprocess

import httpx
import pytest
from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from server import metrics

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
OURS = "steersman_"


def page(server):
    """The page, without a key."""
    response = httpx.get(f"{server.url}/metrics", follow_redirects=True)
    assert response.status_code == 200
    return response.text


def samples(server, prefix=""):
    return {
        (sample.name, *sorted(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(page(server))
        for sample in family.samples
        if sample.name.startswith(prefix)
    }


def risen(before, after, name, **labels):
    """By how much the samples of `name` with at least these labels have risen."""

    def total(values):
        same = [(pairs, value) for (sample, *pairs), value in values.items() if sample == name]
        return sum(value for pairs, value in same if labels.items() <= set(pairs))

    return total(after) - total(before)


def test_every_metric_of_ours_and_vllms_is_there(server):
    """Each metric named in server.metrics is on the page, and the engine's own beside them."""
    families = {family.name for family in text_string_to_metric_families(page(server))}
    named = {made._name for made in vars(metrics).values() if isinstance(made, MetricWrapperBase)}
    assert named
    assert named <= families
    assert {"vllm:num_requests_running", "vllm:generation_tokens", "vllm:prompt_tokens"} <= families


def test_requests_are_counted_by_the_method_that_ran(server, ask):
    """One more for each method, and none for what was refused."""
    before = samples(server)
    ask.chat(sampling_method="ads", n=3)
    ask.chat(typical_p=0.5)
    ask.chat(sampling_method="ssd", top_k=4)
    ask.chat(temperature=0, sampling_method="ads")
    assert (
        ask.post(CHAT, messages=[{"role": "user", "content": "x"}], sampling_method="no").status_code == 400
    )
    after = samples(server)
    name = "steersman_sampling_requests_total"
    counts = {
        method: risen(before, after, name, method=method) for method in ("ads", "typical", "top-k", "greedy")
    }
    assert counts == {"ads": 1, "typical": 1, "top-k": 1, "greedy": 1}
    assert risen(before, after, name) == 4


def test_constraints_are_counted_by_outcome(server, ask):
    """An accepted regex and a refused schema, each once."""
    before = samples(server)
    ask.chat(regex_pattern="[ab]{2}")
    refused = ask.post(CHAT, messages=[{"role": "user", "content": "x"}], json_schema={"type": "nope"})
    assert refused.status_code == 400
    after = samples(server)
    name = "steersman_constraint_requests_total"
    assert risen(before, after, name, type="regex", outcome="accepted") == 1
    assert risen(before, after, name, type="json", outcome="refused") == 1


def test_keys_are_counted_by_where_they_stood(server):
    """Good and bad keys in either header, and their absence."""
    before = samples(server)
    for headers in ({"x-api-key": server.key}, {"authorization": "Bearer ax_bad"}, {}):
        httpx.get(f"{server.url}/v1/models", headers=headers)
    after = samples(server)
    name = "steersman_auth_attempts_total"
    assert risen(before, after, name, method="x-api-key", outcome="ok") == 1
    assert risen(before, after, name, method="bearer", outcome="invalid") == 1
    assert risen(before, after, name, method="none", outcome="missing") == 1


def test_durations_are_kept_by_route_and_status(server, client, ask):
    """A route with a parameter is one series, an unknown path is none of its own."""
    before = samples(server)
    ask.chat()
    client.get("/v1/models/absent/one")
    client.get("/made-up/by/a/scanner")
    after = samples(server)
    name = "steersman_http_request_duration_seconds_count"
    assert risen(before, after, name, route=CHAT, status="200", method="POST") == 1
    assert risen(before, after, name, route="/v1/models/{model_id:path}", status="404") == 1
    assert risen(before, after, name, route="unmatched", status="404") == 1
    assert "scanner" not in page(server)


def test_vllms_token_counters_agree_with_usage(server, ask):
    """Generated tokens of the engine rise by what usage says."""
    before = samples(server)
    usage = ask.chat(n=2, ignore_eos=True)["usage"]
    after = samples(server)
    assert risen(before, after, "vllm:generation_tokens_total") == usage["completion_tokens"] == 24


def test_nothing_of_a_request_becomes_a_label(server, ask):
    """Keys, prompts and model names that clients make up stay out of the page."""
    ask.post(CHAT, messages=[{"role": "user", "content": "secret-prompt"}], model="made-up-model")
    text = page(server)
    assert server.key not in text
    assert "secret-prompt" not in text
    assert "made-up-model" not in text


def test_promtool_finds_no_fault_with_ours(server):
    """`promtool check metrics` reads the whole page; its lint has nothing to say about our metrics."""
    if shutil.which("promtool") is None:
        pytest.skip("no promtool: apt-get install prometheus")
    # Some names of vLLM's and the client library's break Prometheus' conventions, which is theirs to mend.
    done = subprocess.run(
        ["promtool", "check", "metrics"], input=page(server), capture_output=True, text=True, check=False
    )
    said = (done.stdout + done.stderr).splitlines()
    assert not [line for line in said if "parsing error" in line or "error while linting" in line]
    assert [line for line in said if line.startswith(OURS)] == []
    assert all(re.match(r"(vllm:|http_|python_|process_)", line) for line in said), said
