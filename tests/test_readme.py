"""The README's examples, run as a reader would paste them."""

import os
import re
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests.conftest import LiveServer

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
PYTHON = [text for language, text in BLOCKS if language == "python"]
SHELL = [text for language, text in BLOCKS if language == "sh"]


def environ(server: LiveServer) -> dict[str, str]:
    return os.environ | {"STEERSMAN_URL": server.url, "STEERSMAN_KEY": server.key}


def test_the_readme_has_examples() -> None:
    """Both languages are found, so that the tests below are not empty."""
    assert len(PYTHON) >= 2
    assert any("curl" in text for text in SHELL)


@pytest.mark.engine
@pytest.mark.parametrize(
    "example", PYTHON, ids=lambda text: re.findall(r"^(?:import|from) (\w+)", text, re.MULTILINE)[-1]
)
def test_a_python_example_runs(example: str, server: LiveServer, request: pytest.FixtureRequest) -> None:
    """A pasted Python example exits cleanly and prints something."""
    if "mx.sae" in example:
        request.getfixturevalue("autoencoder")
    done = subprocess.run(
        [sys.executable, "-c", example],
        env=environ(server),
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.engine
@pytest.mark.parametrize("example", [text for text in SHELL if "curl" in text], ids=["curl"])
def test_a_curl_example_answers(example: str, server: LiveServer) -> None:
    """The pasted curl line gets a chat completion that names a fruit."""
    done = subprocess.run(
        ["bash", "-c", example], env=environ(server), capture_output=True, text=True, timeout=120, check=False
    )
    assert '"object":"chat.completion"' in done.stdout, done.stderr
    assert any(fruit in done.stdout.lower() for fruit in ("apple", "banana", "orange", "grape", "berr"))


def test_the_make_targets_exist() -> None:
    """`make serve` and `make test` are targets of the Makefile."""
    targets = [line.split()[1] for text in SHELL for line in text.splitlines() if line.startswith("make ")]
    assert {"serve", "test"} <= set(targets)
    make = shutil.which("make")
    if make is None:
        pytest.skip("make is missing: apt-get install make")
    for target in targets:
        done = subprocess.run([make, "-n", target], cwd=ROOT, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


def test_the_steersman_flags_exist() -> None:
    """Every `steersman` line of the README names a command and flags that the program knows."""
    lines = [
        line.partition("#")[0].split()[1:]
        for text in SHELL
        for line in text.splitlines()
        if "bin/steersman" in line
    ]
    assert lines
    for command, *rest in lines:
        help_flag = "--help=all" if command == "serve" else "--help"
        shown = helped(command, *(rest[:1] if command in ("keys", "interactions") else []), help_flag)
        for flag in (word for word in rest if word.startswith("--") and not word.startswith("--help")):
            assert flag in shown


@cache
def helped(*words: str) -> str:
    """What a command says of itself."""
    done = subprocess.run(
        [sys.executable, "-m", "server", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
