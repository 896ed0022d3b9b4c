"""What follows from the flags of `steersman serve`."""

import os
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from server import json_log, vllm_launch
from server.access_log import AccessLog
from server.auth import is_key
from server.settings import Settings
from server.vllm_launch import WORKER, _check_logging, _complete, _forget_dead_counts, _parse, serve

DRAFTS = '{"method": "ngram", "num_speculative_tokens": 3}'


@pytest.fixture(autouse=True)
def threads(monkeypatch):
    """Set, so that a launch on a CPU does not set it for the tests after these."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def completed(tmp_path, *flags, **settings):
    args = _parse(["model", *flags])
    _complete(args, Settings(tmp_path, "sqlite://", **settings))
    return args


def test_the_queue_is_vllm_s_own(tmp_path):
    """--max-queue is --max-num-queued-reqs, which stays as it is without; two numbers are refused."""
    assert completed(tmp_path).max_num_queued_reqs is None
    assert completed(tmp_path, max_queue=9).max_num_queued_reqs == 9
    assert completed(tmp_path, "--max-num-queued-reqs", "5").max_num_queued_reqs == 5
    with pytest.raises(SystemExit, match="give one of them"):
        completed(tmp_path, "--max-num-queued-reqs", "5", max_queue=9)


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


@pytest.fixture
def launched(monkeypatch):
    """What vLLM's own launch is called with; no signal is taken over."""
    calls = []
    monkeypatch.setenv("VLLM_PLUGINS", "steersman")
    monkeypatch.setattr(vllm_launch.signal, "signal", lambda *_: None)
    monkeypatch.setattr(vllm_launch.vllm_tool_parser, "complete", lambda _: ())
    monkeypatch.setattr(vllm_launch, "validate_parsed_serve_args", lambda _: None)
    monkeypatch.setattr(vllm_launch.ServeSubcommand, "cmd", calls.append)
    return calls


def test_a_follower_opens_no_database(launched, monkeypatch, tmp_path):
    """A headless node neither migrates nor makes the first key, nor waits for a port that it lacks."""
    monkeypatch.setattr(vllm_launch, "announce", lambda *_: pytest.fail("there is nothing to announce"))
    monkeypatch.setattr(vllm_launch, "Store", lambda _: pytest.fail("the database is the leader's"))
    follower = ["--headless", "--nnodes", "2", "--node-rank", "1", "--master-addr", "10.0.0.1"]
    assert serve(["model", "--home", str(tmp_path), *follower]) == 0
    assert [args.headless for args in launched] == [True]
    assert list(tmp_path.iterdir()) == []


def test_a_leader_of_several_opens_it_once(launched, monkeypatch, tmp_path):
    """The schema is made and the first key told, before vLLM's launch."""
    announced = []
    monkeypatch.setattr(vllm_launch, "announce", lambda _, __, key, ___: announced.append(key))
    assert serve(["model", "--home", str(tmp_path), "--api-server-count", "2"]) == 0
    (key,) = announced
    assert is_key(key)
    assert (tmp_path / "steersman.db").exists()
    assert len(launched) == 1


def test_json_lines_that_were_not_set_up_early_are_refused(launched, tmp_path):
    """From a file of --config, or beside another configuration, some lines would be text."""
    with pytest.raises(SystemExit, match="--log-format json"):
        serve(["model", "--home", str(tmp_path), "--log-format", "json"])
    assert launched == []
    settings = Settings(tmp_path, "sqlite://", log_format="json")
    with pytest.raises(SystemExit, match="--log-config-file"):
        _check_logging(Namespace(log_config_file=__file__), settings)
    _check_logging(Namespace(log_config_file=str(json_log.PATH)), settings)


def test_the_access_log_hears_vllms_flags():
    """In JSON it is ours, unless it is off; paths that are silenced stay so."""

    def made(log_format, *flags):
        settings = Settings(Path("/h"), "sqlite://", log_format=log_format)
        return AccessLog.of(settings, _parse(["model", *flags]))

    silenced = ("--disable-access-log-for-endpoints", "/health, /readyz,")
    assert made("json", *silenced) == AccessLog(frozenset({"/health", "/readyz"}))
    assert made("json") == AccessLog()
    assert made("json", "--disable-uvicorn-access-log") is None
    assert made("text") is None


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
