"""The `steersman` command: what it hands to whom, and the environment it serves in."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest

from server import __main__ as command
from server import embedded, json_log, keys, migrate, vectors_cli


@pytest.fixture
def serving(monkeypatch):
    """An environment of our own, and a launch that remembers its flags and that environment."""
    environ: dict[str, str] = {}
    calls: list[tuple[list[str], dict[str, str]]] = []

    def serve(argv: list[str]) -> int:
        calls.append((argv, dict(environ)))
        return 3

    monkeypatch.setattr(os, "environ", environ)
    monkeypatch.setattr(command.interrupt, "as_termination", lambda: None)  # this process keeps its Ctrl-C
    monkeypatch.setitem(sys.modules, "server.vllm_launch", SimpleNamespace(serve=serve))
    return SimpleNamespace(environ=environ, calls=calls)


def test_serve_hands_on_its_flags(serving):
    """Everything after `serve` goes to the launch, whose exit status is the command's."""
    assert command.main(["serve", "m", "--port", "1", "--help"]) == 3
    assert serving.calls[0][0] == ["m", "--port", "1", "--help"]


def test_the_environment_is_ready_before_the_engine(serving):
    """No usage statistics, the runner that our processors are for, 64 stop strings, our plugin and media."""
    command.main(["serve"])
    _, environ = serving.calls[0]
    assert (environ["DO_NOT_TRACK"], environ["VLLM_NO_USAGE_STATS"]) == ("1", "1")
    assert environ["VLLM_USE_V2_MODEL_RUNNER"] == "0"
    assert environ["VLLM_MAX_STOP_STRINGS"] == "64"
    assert environ["VLLM_PLUGINS"] == "steersman"
    assert environ["VLLM_MEDIA_CONNECTOR"] == "steersman"


def test_an_operators_environment_wins(serving):
    """A variable that is set already is kept."""
    serving.environ["VLLM_MAX_STOP_STRINGS"] = "9"
    command.main(["serve"])
    assert serving.calls[0][1]["VLLM_MAX_STOP_STRINGS"] == "9"


@pytest.mark.parametrize(
    ("flags", "variable", "as_json"),
    [
        (["--log-format", "json"], "", True),
        (["--log_format=json"], "text", True),
        (["m", "--port", "1"], "json", True),
        (["--log-format", "text"], "json", False),
        (["--help=all"], "json", False),
        (["--log-format"], "", False),
        ([], "", False),
    ],
)
def test_json_lines_are_set_up_before_the_engine_is_imported(serving, monkeypatch, flags, variable, as_json):
    """From the flag, else from the variable; the level goes to the engine's processes by its own variable."""
    configured = []
    monkeypatch.setattr(
        json_log, "configure", lambda: configured.append(serving.environ.get("VLLM_LOGGING_LEVEL"))
    )
    serving.environ["STEERSMAN_LOG_FORMAT"] = variable
    command.main(["serve", *flags, "--log-level", "debug"])
    assert configured == (["DEBUG"] if as_json else [])


def test_two_configurations_of_the_log_are_refused(serving):
    """One of them would be ignored."""
    serving.environ["VLLM_LOGGING_CONFIG_PATH"] = "/own.json"
    with pytest.raises(SystemExit, match="VLLM_LOGGING_CONFIG_PATH"):
        command.main(["serve", "--log-format", "json"])
    assert serving.calls == []


@pytest.mark.parametrize(
    ("before", "after"),
    [("", "steersman"), ("a,b", "a,b,steersman"), ("steersman,a", "steersman,a"), (",a,,", "a,steersman")],
)
def test_plugins_in_use_are_kept(serving, before, after):
    """Our plugin joins those an operator allows, once."""
    serving.environ["VLLM_PLUGINS"] = before
    command.main(["serve"])
    assert serving.calls[0][1]["VLLM_PLUGINS"] == after


@pytest.mark.parametrize(
    ("name", "module"),
    [("keys", keys), ("migrate", migrate), ("vectors", vectors_cli), ("model", embedded)],
)
def test_administration(monkeypatch, name, module):
    """`keys`, `migrate`, `vectors` and `model` run their own module, whose exit status is the command's."""
    seen = []

    def add_parser(subparsers) -> None:
        subparsers.add_parser(name).add_argument("what")

    def run(args) -> int:
        seen.append(args.what)
        return 4

    monkeypatch.setattr(module, "add_parser", add_parser)
    monkeypatch.setattr(module, "run", run)
    assert command.main([name, "it"]) == 4
    assert seen == ["it"]


@pytest.mark.parametrize("argv", [[], ["dance"], ["keys", "dance"], ["--serve"]])
def test_unknown_commands(argv, capsys):
    """What is not a command is refused with the usage, on stderr."""
    with pytest.raises(SystemExit) as ended:
        command.main(argv)
    assert ended.value.code == 2
    assert "usage: steersman" in capsys.readouterr().err


def test_help_lists_every_command(capsys):
    """`steersman --help` names serve, migrate, keys, vectors and model."""
    with pytest.raises(SystemExit) as ended:
        command.main(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert all(f"\n    {name} " in shown for name in ("serve", "migrate", "keys", "vectors", "model"))


def test_version(monkeypatch, capsys):
    """`steersman --version` names both versions, and needs no engine."""
    versions = {"steersman": "1.2", "vllm": "0.32.0"}
    monkeypatch.setattr(command, "package_version", lambda *names: versions[names[0]])
    with pytest.raises(SystemExit) as ended:
        command.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == "steersman 1.2 (vLLM 0.32.0)\n"


def test_administration_needs_no_engine():
    """Only `serve` imports vLLM or torch: keys can be made on a machine without them, and quickly."""
    program = (
        "import sys; from server.__main__ import main\n"
        "try: main(['keys', '--help'])\n"
        "except SystemExit: print({name.partition('.')[0] for name in sys.modules} & {'vllm', 'torch'})\n"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout
    assert output.splitlines()[-1] == "set()"
