"""A server with --accounts: Axionic's client and command line from signup to an answer of the model."""

import json
import subprocess
import sys
import time

import httpx
import pytest

from tests.conftest import start_server, stop
from tests.live.test_lifecycle import TINY, tiny, wait_for  # noqa: F401  # a fixture among them
from tests.terminal import mechanex

pytestmark = pytest.mark.engine

sdk = pytest.importorskip("mechanex", reason="pip install mechanex")
errors = pytest.importorskip("mechanex.errors", reason="pip install mechanex")

PASSWORD = "correct horse battery"


@pytest.fixture(scope="module")
def live(tiny, tmp_path_factory):  # noqa: F811
    """Two API servers, so that what one signs the other reads."""
    flags = ("--max-model-len", "512", "--accounts", "open", "--api-server-count", "2")
    server = start_server(tmp_path_factory.mktemp("accounts"), str(tiny), *TINY, *flags)
    yield server
    stop(server.process)


@pytest.fixture
def mx(live, tmp_path, monkeypatch):
    """A client without credentials."""
    monkeypatch.setenv("HOME", str(tmp_path))
    return sdk.Mechanex(base_url=live.url).set_execution_mode("remote")


def generate(mx):
    return mx.generation.generate("Say it.", sampling_method="greedy", max_tokens=4)


def test_a_session_generates_and_is_counted(mx):
    """With its token alone it gets an answer, as its account's key does, and both count for the account."""
    mx.signup("ada@example.com", PASSWORD)
    mx.login("ada@example.com", PASSWORD)
    text = generate(mx)
    key = mx.create_api_key("laptop")["api_key"]
    mx.set_key(key)
    assert generate(mx) == text
    # the process that did not answer hands over within seconds what it counted
    assert wait_for(lambda: mx.get_balance()["requests"] == 2, 15)
    with httpx.Client(base_url=mx.base_url, headers={"authorization": f"Bearer {mx.access_token}"}) as client:
        body = {"messages": [{"role": "user", "content": "Say it."}], "max_tokens": 2}
        assert client.post("/v1/chat/completions", json=body, timeout=60).status_code == 200


def test_every_process_knows_a_session(live, mx):
    """Fresh connections, which spread over both processes, all take its token; after its end none does."""
    mx.signup("bob@example.com", PASSWORD)
    mx.login("bob@example.com", PASSWORD)
    headers = {"authorization": f"Bearer {mx.access_token}"}
    for _ in range(8):
        assert httpx.get(f"{live.url}/v1/models", headers=headers).status_code == 200
    mx.delete_account()
    time.sleep(2.5)  # the other process remembers it for two seconds
    assert {httpx.get(f"{live.url}/v1/models", headers=headers).status_code for _ in range(8)} == {401}


def test_an_account_sees_its_own_alone(live, mx):
    """Neither the operator's key nor another account is in what a session sees, nor the other way round."""
    mx.signup("eve@example.com", PASSWORD)
    mx.login("eve@example.com", PASSWORD)
    made = mx.create_api_key("hers")
    assert [item["id"] for item in mx.list_api_keys()] == [made["id"]]
    with live.client() as operator:
        assert made["id"] not in [item["id"] for item in operator.get("/auth/api-keys").json()]
        assert operator.delete(f"/auth/api-keys/{made['id']}").status_code == 404


def test_the_command_line_from_signup_to_an_answer(live, tmp_path):
    """signup, login, whoami, create-api-key and list-api-keys in a terminal; then the client generates with
    what they left."""
    signing_up = mechanex(tmp_path, live.url, "signup")
    signing_up.answer("Email:", "cli@example.com")
    signing_up.answer("Password:", PASSWORD)
    signing_up.answer("Hugging Face now?", "n")
    assert "Account Setup Complete!" in signing_up.end()
    logging_in = mechanex(tmp_path, live.url, "login")
    logging_in.answer("Email:", "cli@example.com")
    logging_in.answer("Password:", PASSWORD)
    logging_in.answer("Hugging Face now?", "n")
    assert "Successfully logged in!" in logging_in.end()
    assert "cli@example.com" in mechanex(tmp_path, live.url, "whoami").end()
    created = mechanex(tmp_path, live.url, "create-api-key", "--name", "laptop").end()
    assert "Successfully created API key: laptop" in created
    listed = mechanex(tmp_path, live.url, "list-api-keys").end()
    assert "Default Key" in listed
    assert "laptop" in listed
    program = (
        "import mechanex as mx; mx.set_execution_mode('remote');"
        "print('said', repr(mx.generation.generate('Say it.', sampling_method='greedy', max_tokens=4)))"
    )
    environ = {"HOME": str(tmp_path), "MECHANEX_BASE_URL": live.url, "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environ, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "said '" in done.stdout or 'said "' in done.stdout
    config = json.loads((tmp_path / ".mechanex/config.json").read_text())
    assert config["api_key"].startswith("ax_")


def test_the_operator_gives_an_account_a_password(live, mx):
    """`steersman accounts password` on the running server's database: the new password logs in."""
    mx.signup("reset@example.com", PASSWORD)
    command = [sys.executable, "-m", "server", "accounts", "--steersman-database-url"]
    command += [f"sqlite:///{live.home / 'test.db'}", "password", "reset@example.com"]
    done = subprocess.run(command, input="a new password\n", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with pytest.raises(errors.AuthenticationError):
        mx.login("reset@example.com", PASSWORD)
    assert mx.login("reset@example.com", "a new password")["session"]["access_token"]
