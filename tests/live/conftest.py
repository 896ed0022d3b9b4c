"""Fixtures of the tests that talk to the running server: its clients, and one way to post."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import httpx
import openai
import pytest

from tests.live.steered import noise, pairs_body, upload

BEHAVIOUR, EXAMPLES = "formal tone", 24
ADMITTED = 32  # requests at once; the engine batches up to 64


@pytest.fixture(scope="session")
def oai(server) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.key, max_retries=0) as made:
        yield made


@pytest.fixture(scope="session")
def mx(server):
    """Axionic's SDK, pointed here. Its heavy local half is never used."""
    mechanex = pytest.importorskip("mechanex", reason="pip install mechanex")
    return mechanex.Mechanex(base_url=server.url).set_execution_mode("remote")


@pytest.fixture(scope="session")
def behaviour(client, autoencoder) -> Iterator[dict[str, Any]]:
    """What POST /behaviors/create answers for a formal tone."""
    body = {"behavior_name": BEHAVIOUR, **pairs_body(EXAMPLES)}
    response = client.post("/behaviors/create", json=body, timeout=240)
    assert response.status_code == 200, response.text
    made = response.json()
    yield made
    client.delete(f"/behaviors/{made['id']}")
    client.delete(f"/steering/vectors/{made['steering_vector_id']}")


class Asking:
    """Posts to the server and asks for JSON; errors are returned like answers, except by `ok`."""

    def __init__(self, client: httpx.Client, http: httpx.AsyncClient) -> None:
        self._client, self._http = client, http
        self._slots = asyncio.Semaphore(ADMITTED)

    def post(self, path: str, **body: Any) -> httpx.Response:
        return self._client.post(path, json=body, headers={"accept": "application/json"})

    def ok(self, path: str, **body: Any) -> dict[str, Any]:
        response = self.post(path, **body)
        assert response.status_code == 200, response.text
        return response.json()

    def chat(self, text: str = "Say something about rivers.", **fields: Any) -> dict[str, Any]:
        messages = [{"role": "user", "content": text}]
        return self.ok("/v1/chat/completions", messages=messages, **{"max_tokens": 12, **fields})

    def events(self, path: str, **body: Any) -> list[dict[str, Any]]:
        """The JSON payloads of an OpenAI stream, which must end with [DONE]."""
        with self._client.stream("POST", path, json={**body, "stream": True}) as response:
            lines = [line[6:] for line in response.iter_lines() if line.startswith("data: ")]
            assert response.status_code == 200, lines
        assert lines[-1] == "[DONE]"
        return [json.loads(line) for line in lines[:-1]]

    async def together(self, requests: list[tuple[str, dict[str, Any]]]) -> list[httpx.Response]:
        """Post all, `ADMITTED` at a time, so that they share batches."""

        async def one(path: str, body: dict[str, Any]) -> httpx.Response:
            async with self._slots:
                return await self._http.post(path, json=body)

        return await asyncio.gather(*(one(path, body) for path, body in requests))


@pytest.fixture(scope="session")
async def http(server) -> AsyncIterator[httpx.AsyncClient]:
    headers = {"authorization": f"Bearer {server.key}"}
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=600, limits=limits) as made:
        yield made


@pytest.fixture(scope="session")
def ask(client, http) -> Asking:
    return Asking(client, http)


@pytest.fixture(scope="session")
def vector(client) -> str:
    """The id of a stored vector that moves every log-probability."""
    return upload(client, noise(1), name="noise")


@pytest.fixture(scope="session")
def trained(ask) -> str:
    """The id of a CAA vector at its default layers, from 16 pairs."""
    return ask.ok("/steering/generate", **pairs_body(16, method="caa", name="tone"))["steering_vector_id"]
