"""What a project has on the running server, made over HTTP; and accounts, made in the server's database."""

import asyncio
import time
from collections.abc import Mapping

import httpx

from server.embedded import NAME
from server.logins import Logins
from server.store import Store
from server.vectors import NewVector, Vectors
from steering.files import read_flat
from tests.access import CHAT, OWN_PRESET
from tests.live.steered import noise, pairs_body, upload


def database(server) -> Store:
    return Store(f"sqlite+aiosqlite:///{server.home / 'test.db'}")


def account(server, email: str) -> tuple[str, str]:
    """The id of a new account, and a key of its own."""

    async def made() -> tuple[str, str]:
        store = database(server)
        try:
            account = await Logins(store.database).add(email, "no password")
            return account.id, (await store.create_key(account.id, None)).key
        finally:
            await store.close()

    return asyncio.run(made())


def calling(server, key: str, **headers: str) -> httpx.Client:
    said = {"authorization": f"Bearer {key}", "accept": "application/json", **headers}
    return httpx.Client(base_url=server.url, headers=said, timeout=300)


def belongings(server, owner: httpx.Client, project: Mapping[str, str]) -> Mapping[str, str]:
    """By the names that `tests/access.py` uses, `project` among them, which `owner` calls in.

    Its `mark` is a word in all texts and names.
    """
    mark = project["mark"]
    things = {**project, "model": NAME, "behavior_name": f"{mark} tone"}

    def posted(path: str, **body) -> dict:
        response = owner.post(path, json=body)
        assert response.is_success, f"{path}: {response.text}"
        return response.json()

    for seed, number in enumerate(("", "second_", "third_", "fourth_"), 1):
        labels = {"name": f"{mark} {number}", "category": mark}
        things[f"{number}vector_id"] = upload(owner, noise(seed), **labels)
    things["policy_id"] = f"{mark}-policy"
    posted("/policies/save", policy={"id": things["policy_id"], "name": mark})
    published = posted("/policies/presets/publish", name=mark, policy={"name": mark})
    things["preset_id"] = published["preset_id"]
    things["preset_vector_id"] = own_preset(server, owner, project["project_id"])
    alias = owner.put(f"/projects/{project['project_id']}/models/{mark}-model", json={"model": NAME}).json()
    things |= {"alias_id": alias["id"], "alias_key": alias["key"]}
    things["job_id"] = posted("/steering/generate", background=True, name=mark, **pairs_body(4))["job_id"]
    kept = {"store": True, "metadata": {"project": mark}}
    asked = [{"role": "user", "content": f"What is a {mark}?"}]
    answer = owner.post("/v1/chat/completions", json={**CHAT, "messages": asked, **kept})
    things["completion_id"] = answer.json()["id"]
    things["request_id"] = answer.headers["x-request-id"]
    feedback = f"/v1/chat/completions/{things['completion_id']}/feedback"
    things["feedback_id"] = posted(feedback, metric="helpful", value=1, reason=mark)["id"]
    things["response_id"] = posted("/v1/responses", input=mark, max_output_tokens=2)["id"]
    things["key_id"] = posted("/auth/api-keys", name=mark)["id"]
    body = {"behavior_name": things["behavior_name"], "description": mark, **pairs_body(16)}
    made = posted("/behaviors/create", steering_vector_id=things["vector_id"], **body)
    things["behavior_id"] = made["id"]
    wait(lambda: owner.get(f"/steering/jobs/{things['job_id']}").json()["status"] == "complete")
    wait(lambda: owner.get(f"/observability/requests/{things['request_id']}").is_success)
    return things


def own_preset(server, owner: httpx.Client, account_id: str) -> str:
    """The vector of the preset that is made of one's own examples, without the minute that it takes."""
    model = owner.get("/saes").json()["model"]
    new = NewVector(
        account_id,
        read_flat(noise(9)),
        method="caa",
        model_name=model["name"],
        model_fingerprint=model["fingerprint"],
        preset=OWN_PRESET,
        dataset_digest="0" * 64,
    )

    async def put() -> str:
        store = database(server)
        try:
            return (await Vectors(store.database).put_preset(new)).id
        finally:
            await store.close()

    return asyncio.run(put())


def wait(done) -> None:
    deadline = time.monotonic() + 120
    while not done():
        assert time.monotonic() < deadline, "it never came"
        time.sleep(0.1)
