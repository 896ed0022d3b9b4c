"""What follows from the flags of `steersman serve`."""

import pytest

from server.settings import Settings
from server.vllm_launch import WORKER, _complete, _parse

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
