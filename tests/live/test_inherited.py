"""What is vLLM's own keeps working behind Steersman's keys and error shapes."""

import pytest

pytestmark = pytest.mark.engine


def test_anthropic_messages_answer(client):
    """/v1/messages takes Anthropic's shape and either header for the key."""
    body = {"model": "default", "max_tokens": 8, "messages": [{"role": "user", "content": "Name a river."}]}
    body["model"] = client.get("/v1/models").json()["data"][0]["id"]
    answer = client.post("/v1/messages", json=body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["type"] == "message"
    assert answer.json()["usage"]["output_tokens"] <= 8
    key = client.headers["authorization"].removeprefix("Bearer ")
    other = client.post("/v1/messages", json=body, headers={"authorization": "", "x-api-key": key})
    assert other.status_code == 200


def test_tokenize_and_detokenize_are_inverse(client):
    """/tokenize and /detokenize round-trip a text."""
    tokens = client.post("/tokenize", json={"prompt": "steer the ship"}).json()["tokens"]
    assert client.post("/detokenize", json={"tokens": tokens}).json()["prompt"] == "steer the ship"


def test_open_routes_need_no_key(server):
    """Health, readiness, metrics, version and the API's description are for everyone."""
    import httpx

    for path in ("/health", "/readyz", "/metrics", "/version", "/openapi.json", "/docs"):
        assert httpx.get(f"{server.url}{path}", timeout=30).status_code == 200, path


def test_usage_of_inherited_routes_is_counted(client):
    """Tokens of /v1/responses reach the key's balance like any other."""
    before = client.get("/auth/api-keys/balance").json()
    answer = client.post("/v1/responses", json={"input": "Name a river.", "max_output_tokens": 5}).json()
    after = client.get("/auth/api-keys/balance").json()
    assert after["prompt_tokens"] - before["prompt_tokens"] == answer["usage"]["input_tokens"]
    assert after["completion_tokens"] - before["completion_tokens"] == answer["usage"]["output_tokens"]
    assert after["requests"] - before["requests"] == 1
