"""Limits of keys as clients of the running server meet them."""

import time

import httpx
import openai
import pytest

from tests.live.test_metrics import page

pytestmark = pytest.mark.engine

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "Name a river."}], "max_tokens": 4, "ignore_eos": True}


@pytest.fixture
def limited(client, server):
    """Makes clients of keys with limits, which are revoked afterwards."""
    made = []

    def make(**limits: int) -> httpx.Client:
        created = client.post("/auth/api-keys", json=limits).json()
        headers = {"authorization": f"Bearer {created['api_key']}"}
        made.append((created["id"], httpx.Client(base_url=server.url, headers=headers, timeout=60)))
        return made[-1][1]

    yield make
    for key_id, http in made:
        http.close()
        client.delete(f"/auth/api-keys/{key_id}")


def test_openai_s_client_understands_the_limit(server, limited):
    """The answer tells what is left, the refusal is RateLimitError with the seconds to wait."""
    http = limited(requests_per_minute=1, tokens_per_minute=1000)
    key = http.headers["authorization"].removeprefix("Bearer ")
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0) as oai:
        answer = oai.chat.completions.with_raw_response.create(
            model="default", messages=BODY["messages"], max_tokens=4
        )
        assert answer.headers["x-ratelimit-remaining-requests"] == "0"
        assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
        with pytest.raises(openai.RateLimitError) as refused:
            oai.chat.completions.create(model="default", messages=BODY["messages"], max_tokens=4)
    assert refused.value.code == "rate_limit_exceeded"
    assert 1 <= int(refused.value.response.headers["retry-after"]) <= 60
    assert 'steersman_rate_limited_total{limit="requests"}' in page(server)


def test_what_an_answer_used_is_charged(limited):
    """Tokens of prompt and answer, of streams too; once they are owed, nothing more is let in."""
    http = limited(tokens_per_minute=100)
    used = http.post(CHAT, json=BODY).json()["usage"]["total_tokens"]
    assert used == 4 + http.post("/tokenize", json={"messages": BODY["messages"]}).json()["count"]
    left = int(streamed(http, max_tokens=90)["x-ratelimit-remaining-tokens"])
    assert 100 - used <= left <= 100 - used + 20
    deadline = time.monotonic() + 5
    while (refused := http.post(CHAT, json=BODY)).status_code == 200 and time.monotonic() < deadline:
        pass
    assert refused.status_code == 429
    assert "100 tokens a minute" in refused.json()["error"]["message"]


def streamed(http, **fields):
    with http.stream("POST", CHAT, json={**BODY, **fields, "stream": True}) as response:
        assert response.read().count(b"data: ") > 10
        return response.headers


def test_a_client_that_leaves_gives_its_place_back(limited):
    """One request at once: while a stream runs the next is refused, and let in once its client has left."""
    http = limited(concurrent_requests=1)
    long = {**BODY, "max_tokens": 1500, "stream": True}
    with http.stream("POST", CHAT, json=long) as response:
        lines = response.iter_lines()  # dropped, it would close the connection
        assert next(lines).startswith("data: ")
        refused = http.post(CHAT, json=BODY)
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    deadline = time.monotonic() + 10
    while http.post(CHAT, json=BODY).status_code == 429:
        assert time.monotonic() < deadline
        time.sleep(0.05)
