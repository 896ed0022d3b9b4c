"""Embeddings of a second engine, which pools where ours generates, against the same model in transformers."""

import base64
import os
import subprocess
import sys
import time
from contextlib import closing

import httpx
import numpy as np
import openai
import pytest
import torch

from tests.conftest import START_SECONDS, free_port, start_server, stop
from tests.live.test_lifecycle import TINY, tiny  # noqa: F401  # a fixture among them

pytestmark = pytest.mark.engine

TEXTS = ["The capital of France is Paris.", "Rain falls on the plain.", "x = [i for i in range(9)]"]


@pytest.fixture(scope="module")
def embedder(model_path, tmp_path_factory):
    """The URL of vLLM's own server, with the embedded model as one that embeds."""
    port, log = free_port(), tmp_path_factory.mktemp("embedder") / "server.log"
    command = [
        sys.executable,
        "-m",
        "vllm.entrypoints.launchers.api_server.entry",
        "--model",
        str(model_path),
    ]
    command += ["--served-model-name", "org/embedder", "--runner", "pooling", "--convert", "embed"]
    command += ["--dtype", "float32", "--max-model-len", "256", "--max-num-seqs", "8", "--enforce-eager"]
    command += ["--gpu-memory-utilization", "0.3", "--host", "127.0.0.1", "--port", str(port)]
    own = {
        "VLLM_PLUGINS": "",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
    }
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    with log.open("wb") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, env=inherited | own, start_new_session=True
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_SECONDS
    while not healthy(url):
        if process.poll() is not None or time.monotonic() > deadline:
            stop(process)
            pytest.fail(f"the server that embeds did not start:\n{log.read_text()[-6000:]}")
        time.sleep(0.5)
    yield url
    stop(process)


def healthy(url):
    try:
        return httpx.get(f"{url}/health", timeout=2).status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture(scope="module")
def live(embedder, tiny, tmp_path_factory):  # noqa: F811
    """Ours, before it."""
    flags = ["--max-model-len", "512", "--disable-steering", "--embeddings-url", f"{embedder}/v1"]
    server = start_server(tmp_path_factory.mktemp("embeddings"), str(tiny), *TINY, *flags)
    yield server
    stop(server.process)


@pytest.fixture(scope="module")
def client(live):
    with live.client() as http:
        yield http


@pytest.fixture(scope="module")
def oai(live):
    with openai.OpenAI(base_url=f"{live.url}/v1", api_key=live.key, max_retries=0) as made:
        yield made


@pytest.fixture(scope="module")
def reference(model_path):
    """The last token's state after the last norm, of length 1: what vLLM makes of a model that generates."""
    from transformers import AutoModel, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModel.from_pretrained(model_path, dtype=torch.float32).eval()
    rows = []
    with torch.no_grad():
        for text in TEXTS:
            states = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0]
            rows.append(torch.nn.functional.normalize(states[-1], dim=0).numpy())
    return rows, sum(len(tokenizer(text).input_ids) for text in TEXTS)


def alike(given, expected):
    for vector, row in zip(given, expected, strict=True):
        ours = np.asarray(vector, np.float64)
        assert ours @ row / np.linalg.norm(ours) / np.linalg.norm(row) > 0.999


@pytest.mark.parametrize("encoding", [{}, {"encoding_format": "float"}, {"encoding_format": "base64"}])
def test_openai_s_client_gets_the_model_s_own_vectors(oai, reference, encoding):
    """In its default encoding, base64, which it unpacks, as in any other."""
    rows, tokens = reference
    made = oai.embeddings.create(model="org/embedder", input=TEXTS, **encoding)
    vectors = [each.embedding for each in made.data]
    if encoding.get("encoding_format") == "base64":
        vectors = [np.frombuffer(base64.b64decode(text), "<f4") for text in vectors]
    alike(vectors, rows)
    assert made.usage.prompt_tokens == made.usage.total_tokens == tokens
    assert abs(np.dot(vectors[0], vectors[1])) < 0.999  # or any two vectors would be alike


def test_tokens_are_embedded_too(oai, client, embedder, reference):
    """A text as the tokens that the embedding server makes of it."""
    body = {"model": "org/embedder", "prompt": TEXTS[0]}
    tokens = httpx.post(f"{embedder}/tokenize", json=body).json()["tokens"]
    made = oai.embeddings.create(model="org/embedder", input=tokens, encoding_format="float")
    alike([made.data[0].embedding], reference[0][:1])


def test_adaptive_s_client_gets_them(live, reference):
    """Of a project's model, and of the project alone."""
    sdk = pytest.importorskip("adaptive_sdk", reason="pip install adaptive-sdk==0.14.2")
    adaptive = sdk.Adaptive(base_url=live.url, api_key=live.key)
    adaptive.set_default_project("default")
    with closing(adaptive):
        for model in ("org/embedder", None):
            made = adaptive.embeddings.create(input=TEXTS[0], model=model)
            alike([made.data[0].embedding], reference[0][:1])
            assert made.usage.prompt_tokens == made.usage.total_tokens > 0


def test_they_are_counted_for_the_key(client, reference):
    """One request and its tokens, like one that generates."""
    names = ("requests", "prompt_tokens", "completion_tokens")
    before = client.get("/auth/api-keys/balance").json()
    assert client.post("/v1/embeddings", json={"input": TEXTS}).status_code == 200
    after = client.get("/auth/api-keys/balance").json()
    assert [after[name] - before[name] for name in names] == [1, reference[1], 0]


def test_its_models_are_listed_beside_ours(client):
    """And found by their names; they generate nothing."""
    names = [each["id"] for each in client.get("/v1/models").json()["data"]]
    assert "org/embedder" in names
    assert "tiny" in names
    assert client.get("/v1/models/org/embedder").json()["id"] == "org/embedder"
    body = {"model": "org/embedder", "messages": [{"role": "user", "content": "Hello."}]}
    assert client.post("/v1/chat/completions", json=body).status_code == 404
    assert client.post("/v1/embeddings", json={"model": "tiny", "input": "a"}).status_code == 404


def test_what_is_too_long_for_it_is_refused(oai):
    """In its own words."""
    with pytest.raises(openai.BadRequestError, match="256"):
        oai.embeddings.create(model="org/embedder", input="word " * 400)


def test_dimensions_that_the_model_cannot_have_are_refused(oai):
    """Rather than answered by a vector of another length."""
    with pytest.raises(openai.BadRequestError):
        oai.embeddings.create(model="org/embedder", input="a", dimensions=8)
