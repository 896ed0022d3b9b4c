"""The self-test at start: it finds what is not closed off, and says why there is no sandbox."""

import json
import os
import shutil
from pathlib import Path

import pytest

from server import sandbox as module
from server import sandbox_layout, seccomp
from server.errors import Unavailable
from server.sandbox import Ended, Sandbox, SandboxOff
from server.sandbox_attacks import Attack, attacks
from tests.server.sandboxes import HERE, SECONDS

pytestmark = HERE


# The proof at start


async def test_the_proof_finds_a_hole(monkeypatch):
    """Where one property does not hold there is no sandbox, and the reason names it."""
    program = seccomp.program
    monkeypatch.setattr(seccomp, "program", lambda machine, *, processes: program(machine, processes=True))
    off = await Sandbox.open(warm=0)
    assert isinstance(off, SandboxOff)
    assert off.problem.startswith("the sandbox does not hold: code starts processes (failed: ")


async def test_the_proof_looks_at_the_paths_it_is_given(tmp_path):
    """A secret within what every sandbox sees is found; a host like that has no sandbox."""
    off = await Sandbox.open(warm=0, hidden=[Path(os.__file__)])
    assert isinstance(off, SandboxOff)
    assert "code reads the host's files" in off.problem
    assert os.__file__ in off.problem


@pytest.mark.parametrize(
    ("lost", "kept"),
    [
        # the filter still stands between the code and a network
        ("--unshare-all", ["--unshare-pid", "--unshare-ipc", "--unshare-uts"]),
        ("--clearenv", []),  # bwrap is given no secrets, and the runner clears what there is
        ("--new-session", []),  # there is no terminal
    ],
)
async def test_layers_stand_alone(monkeypatch, lost, kept):
    """Of two layers that keep the same promise, one is enough for code to be kept in."""
    flags = [flag for flag in sandbox_layout._ISOLATION if flag != lost]
    monkeypatch.setattr(sandbox_layout, "_ISOLATION", (*flags, *kept))
    opened = await Sandbox.open(warm=0)
    assert isinstance(opened, Sandbox), opened.problem
    await opened.close()


async def test_no_bwrap(monkeypatch):
    """Without bubblewrap the reason says what to install."""
    monkeypatch.setattr(shutil, "which", lambda name: None if name == "bwrap" else f"/usr/bin/{name}")
    off = await Sandbox.open()
    assert off == SandboxOff("bubblewrap is not installed (apt-get install bubblewrap)")


async def test_an_unknown_machine(monkeypatch):
    """Where there is no filter for the architecture there is no sandbox."""
    monkeypatch.setattr(module.platform, "machine", lambda: "riscv64")
    off = await Sandbox.open()
    assert isinstance(off, SandboxOff)
    assert "not linux on riscv64" in off.problem


async def test_a_host_that_refuses_bwrap(monkeypatch):
    """Where bwrap cannot do its work, the reason is its own last line, and a run is refused with it."""
    refused = (*sandbox_layout._ISOLATION, "--ro-bind", "/no/such/path", "/x")
    monkeypatch.setattr(sandbox_layout, "_ISOLATION", refused)
    off = await Sandbox.open()
    assert isinstance(off, SandboxOff)
    assert "cannot be started: bwrap: Can't find source path /no/such/path" in off.problem
    subject = Sandbox()
    with pytest.raises(Unavailable, match="no/such/path"):
        await subject.run("pass", SECONDS)
    await subject.close()


def test_every_attack_says_what_it_breaks():
    """Each attack is a program of its own, with a distinct reason and an ending that exists."""
    tried = list(attacks([Path("/secret")], [Path("/usr/lib")], 2**20, 2**28))
    assert len({attack.broken for attack in tried}) == len(tried)
    for attack in tried:
        assert isinstance(attack, Attack)
        assert attack.ended in set(Ended)
        compile(attack.code, "attack", "exec")
    assert json.dumps(["/usr/lib", "/usr", "/"]) in tried[2].code
