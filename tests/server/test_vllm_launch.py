"""What follows from the flags of `steersman serve`."""

import os
import subprocess

import pytest

from server.settings import Settings
from server.vllm_launch import WORKER, _complete, _forget_dead_counts, _parse

DRAFTS = '{"method": "ngram", "num_speculative_tokens": 3}'


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Set, so that a launch on a CPU does not set it for the tests after these."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def completed(tmp_path, *flags):
    args = _parse(["model", *flags])
    _complete(args, Settings(tmp_path, "sqlite://"))
    return args


def test_drafts_are_scheduled_in_step_with_the_host(tmp_path):
    """Asynchronously, the host would take every draft for accepted, and token ranges would be off by some."""
    assert completed(tmp_path, "--speculative-config", DRAFTS).async_scheduling is False
    assert completed(tmp_path).async_scheduling is None
    unsteered = completed(tmp_path, "--speculative-config", DRAFTS, "--disable-steering")
    assert (unsteered.async_scheduling, unsteered.worker_cls) == (None, "auto")


def test_asking_for_both_is_refused(tmp_path):
    """The flag is not dropped in silence."""
    with pytest.raises(SystemExit, match="--disable-steering"):
        completed(tmp_path, "--speculative-config", DRAFTS, "--async-scheduling")
    flags = ("--speculative-config", DRAFTS, "--async-scheduling", "--disable-steering")
    assert completed(tmp_path, *flags).async_scheduling is True


def test_traces_are_the_server_s_by_name(tmp_path, monkeypatch):
    """Unless the environment names it otherwise; without statistics vLLM's engine would die of its spans."""
    traced = ("--otlp-traces-endpoint", "http://127.0.0.1:4317")
    monkeypatch.delenv("OTEL_SERVICE_NAME", raising=False)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    completed(tmp_path, *traced)
    assert "OTEL_SERVICE_NAME" not in os.environ
    monkeypatch.delenv("OTEL_RESOURCE_ATTRIBUTES")
    with monkeypatch.context() as patch:
        patch.setattr(os, "environ", dict(os.environ))
        completed(tmp_path, *traced)
        assert os.environ["OTEL_SERVICE_NAME"] == "steersman"
    with pytest.raises(SystemExit, match="--disable-log-stats"):
        completed(tmp_path, *traced, "--disable-log-stats")


def test_the_worker_knows_its_rows(tmp_path):
    """A vector of asas with eight layers fits the default table."""
    args = completed(tmp_path)
    assert args.worker_cls == WORKER
    assert args.additional_config["steersman_steering"]["rows"] >= 8 * 130


@pytest.mark.parametrize(
    ("flags", "accounts"),
    [
        ([], "off"),
        (["--accounts"], "open"),
        (["--accounts", "closed"], "closed"),
        (["--accounts=off"], "off"),
    ],
)
def test_accounts_are_open_unless_said_otherwise(flags, accounts):
    """The flag alone opens signup, a word after it says who may have an account; without it nobody."""
    assert Settings.read(_parse(["model", *flags]), {}).accounts == accounts
    assert _parse(["model", *flags, "--port", "9"]).port == 9


def test_dead_processes_count_no_more(tmp_path, monkeypatch):
    """A folder of metrics that outlives its processes is rid of theirs, and of nothing else."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    names = ["gauge_livesum_{}.db", "counter_{}.db", "notes_{}.txt"]
    for name in names:
        for pid in (dead.pid, os.getpid()):
            (tmp_path / name.format(pid)).touch()
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    _forget_dead_counts()
    kept = {name.format(os.getpid()) for name in names} | {names[2].format(dead.pid)}
    assert {path.name for path in tmp_path.iterdir()} == kept
