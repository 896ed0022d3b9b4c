"""`steersman projects`, and keys within them."""

import argparse
import json

import pytest

from server import keys, projects_cli


@pytest.fixture
def steersman(tmp_path, capsys):
    """Run `steersman …` in this process on an SQLite file: its status, standard output and standard error."""
    parser = argparse.ArgumentParser("steersman")
    commands = parser.add_subparsers(dest="command")
    runs = {"projects": projects_cli.run, "keys": keys.run}
    projects_cli.add_parser(commands)
    keys.add_parser(commands)

    def run(command, *arguments: str) -> tuple[int, str, str]:
        url = ["--steersman-database-url", f"sqlite:///{tmp_path / 'steersman.db'}"]
        status = runs[command](parser.parse_args([command, *url, *arguments]))
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def test_the_command_makes_lists_and_deletes(steersman):
    """The operator owns what has no other owner; its key is within the project with its role."""
    assert steersman("projects", "list")[1] == "No projects yet: `steersman projects add KEY` makes one.\n"
    status, made, _ = steersman("projects", "add", "lab", "--name", "The lab")
    assert status == 0
    [item] = json.loads(steersman("projects", "list", "--json")[1])
    assert (item["id"], item["key"], item["name"]) == (made.strip(), "lab", "The lab")
    assert item["members"] == [{"email": "owner@localhost", "role": "owner"}]
    assert steersman("keys", "create", "--project", "lab", "--role", "read-only")[0] == 0
    [key] = json.loads(steersman("keys", "list", "--json")[1])
    assert (key["account_id"], key["role"]) == (item["id"], "read-only")
    assert "lab" in steersman("projects", "list")[1]
    assert steersman("projects", "delete", "lab")[0] == 0
    assert json.loads(steersman("keys", "list", "--json")[1]) == []


@pytest.mark.parametrize(
    ("command", "arguments", "says"),
    [
        ("projects", ["add", "The lab"], "a key has"),
        ("projects", ["add", "lab", "--owner", "ada@example.org"], "steersman accounts add"),
        ("projects", ["delete", "lab"], "no project 'lab'"),
        ("projects", ["member", "lab", "ada@example.org", "owner"], "no project 'lab'"),
        ("keys", ["create", "--project", "lab"], "no project 'lab'"),
    ],
)
def test_what_cannot_be_done_is_told(steersman, command, arguments, says):
    """One line on standard error, status 1, and nothing was made."""
    status, out, err = steersman(command, *arguments)
    assert (status, out) == (1, "")
    assert says in err
    assert len(err.splitlines()) == 1
