"""Axionic's own client and its command line, against the routes of accounts on a socket."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from contextlib import nullcontext
from datetime import timedelta

import pytest
import uvicorn

from server.sessions import Lives
from server.store import Store
from tests.server.accounts_world import EMAIL, PASSWORD, World
from tests.terminal import mechanex

sdk = pytest.importorskip("mechanex", reason="pip install mechanex")
errors = pytest.importorskip("mechanex.errors", reason="pip install mechanex")


class Listening(uvicorn.Server):
    def capture_signals(self):
        return nullcontext()


@pytest.fixture
async def world(tmp_path, monkeypatch) -> AsyncIterator[World]:
    """Served at `world.url`; the client keeps its credentials below `world.home`."""
    monkeypatch.setenv("HOME", str(tmp_path))
    store = Store(f"sqlite:///{tmp_path / 'a.db'}")
    await asyncio.to_thread(store.migrate)
    world = World(store)
    server = Listening(uvicorn.Config(world.app, log_level="warning", lifespan="off", ws="none"))
    listener = socket.create_server(("127.0.0.1", 0))
    serving = asyncio.create_task(server.serve([listener]))
    world.url, world.home = f"http://127.0.0.1:{listener.getsockname()[1]}", tmp_path
    yield world
    server.should_exit = True
    await serving
    await store.close()


@pytest.fixture
def mx(world):
    return sdk.Mechanex(base_url=world.url).set_execution_mode("remote")


async def test_the_client_signs_up_and_logs_in(mx):
    """signup, login, whoami, create_api_key and list_api_keys, each with what the one before it left."""

    def use():
        signed_up = mx.signup(EMAIL, PASSWORD)
        assert mx.access_token is None  # the client leaves that to login
        logged_in = mx.login(EMAIL, PASSWORD)
        assert logged_in["user"] == signed_up["user"]
        assert mx.whoami()["email"] == EMAIL
        made = mx.create_api_key("laptop")
        assert [item["id"] for item in mx.list_api_keys()] == [made["id"]]
        mx.access_token = mx.refresh_token = None
        mx.set_key(made["api_key"])
        assert mx.whoami()["id"] == logged_in["user"]["id"]

    await asyncio.to_thread(use)


async def test_the_client_refreshes_by_itself(world, mx):
    """An expired token costs one refresh; the new ones are kept where the client looks for them."""
    sessions = world.state.accounts.sessions

    def use():
        mx.signup(EMAIL, PASSWORD)
        sessions._lives = Lives(access=timedelta(seconds=-1))
        mx.login(EMAIL, PASSWORD)
        sessions._lives = Lives()
        before = mx.access_token, mx.refresh_token
        assert mx.whoami()["email"] == EMAIL
        assert mx.access_token != before[0]
        assert mx.refresh_token != before[1]
        kept = json.loads((world.home / ".mechanex/config.json").read_text())
        assert (kept["access_token"], kept["refresh_token"]) == (mx.access_token, mx.refresh_token)
        assert mx.whoami()["email"] == EMAIL

    await asyncio.to_thread(use)
    assert world.counts == [("session", "invalid"), ("session", "ok"), ("session", "ok")]


async def test_the_client_changes_its_account(mx):
    """change_password, change_email and delete_account do so; wrong passwords are AuthenticationErrors."""

    def use():
        mx.signup(EMAIL, PASSWORD)
        mx.login(EMAIL, PASSWORD)
        mx.change_password("a new password")
        mx.change_email("ada@example.org")
        with pytest.raises(errors.AuthenticationError, match="password is wrong"):
            mx.login(EMAIL, "a new password")
        mx.login("ada@example.org", "a new password")
        mx.delete_account()
        with pytest.raises(errors.AuthenticationError):
            mx.login("ada@example.org", "a new password")

    await asyncio.to_thread(use)


async def test_the_client_is_told_what_is_wrong(mx):
    """ValidationError names the field, a conflict is told, and too many guesses are a RateLimitError."""

    def use():
        with pytest.raises(errors.ValidationError, match="at least 8 characters"):
            mx.signup(EMAIL, "short")
        mx.signup(EMAIL, PASSWORD)
        with pytest.raises(errors.APIError, match="There is an account"):
            mx.signup(EMAIL, PASSWORD)
        for _ in range(10):
            with pytest.raises(errors.AuthenticationError):
                mx.login(EMAIL, "wrong guess")
        with pytest.raises(errors.RateLimitError, match="try again in 30 s"):
            mx.login(EMAIL, PASSWORD)

    await asyncio.to_thread(use)


async def test_a_model_set_in_a_session_is_that_of_the_key(world, mx):
    """set_model, which the client sends with its token alone, holds for the key with which it generates."""

    def use():
        mx.signup(EMAIL, PASSWORD)
        mx.login(EMAIL, PASSWORD)
        mx.set_key(mx.create_api_key("laptop")["api_key"])
        mx.set_model("org/model")
        return mx.api_key

    world.app.app.get("/models")(lambda: [{"name": "org/model"}])  # which the client looks at before
    key = await asyncio.to_thread(use)
    assert (await world.state.keyring.principal(key)).selected_model == "org/model"


async def test_the_command_line(world):
    """signup leaves a key and tokens; whoami, create-api-key and list-api-keys use them; a later login leaves
    the key as it is."""

    def use():
        signing_up = mechanex(world.home, world.url, "signup")
        signing_up.answer("Email:", EMAIL)
        signing_up.answer("Password:", PASSWORD)
        signing_up.answer("Hugging Face now?", "n")
        shown = signing_up.end()
        assert "Account Setup Complete!" in shown
        assert PASSWORD not in shown
        config = json.loads((world.home / ".mechanex/config.json").read_text())
        assert config["api_key"] in shown
        assert EMAIL in mechanex(world.home, world.url, "whoami").end()
        created = mechanex(world.home, world.url, "create-api-key", "--name", "laptop").end()
        assert "Successfully created API key: laptop" in created
        listed = mechanex(world.home, world.url, "list-api-keys").end()
        assert "Default Key" in listed
        assert "laptop" in listed
        logging_in = mechanex(world.home, world.url, "login")
        logging_in.answer("Email:", EMAIL)
        logging_in.answer("Password:", PASSWORD)
        logging_in.answer("Select a key", "1")
        logging_in.answer("Hugging Face now?", "n")
        assert "Successfully logged in!" in logging_in.end()
        again = json.loads((world.home / ".mechanex/config.json").read_text())
        assert again["api_key"] == config["api_key"]
        assert again["refresh_token"] != config["refresh_token"]

    await asyncio.to_thread(use)
