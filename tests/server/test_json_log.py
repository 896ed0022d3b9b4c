"""Log lines as JSON objects, one for each: of records, of prints, of what nobody caught."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from server import json_log

ROOT = Path(__file__).parents[2]

PROGRAM = '''
import logging, os, subprocess, sys, threading, warnings
from server import json_log

CHILD = """
import json, logging.config, sys
print("of a child", flush=True)
from server import json_log
logging.config.dictConfig(json.loads(json_log.PATH.read_text()))
logging.getLogger("child").warning("from a child")
print('{"time": no', file=sys.stderr)
"""

json_log.configure()
json_log.configure()  # as vLLM and uvicorn do again
logging.getLogger("vllm.engine").info("started %d\\nworkers", 2)
logging.getLogger("vllm.engine").debug("quiet")
logging.getLogger("somebody").warning("näher")
logging.getLogger("server.access").info("GET", extra={"fields": {"status": 200}})
logging.getLogger("uvicorn.access").info("twice")
json_log.request_id.set("run-7")
try:
    {}["missing"]
except KeyError:
    logging.getLogger("server").exception("it failed")
print("two", "\\nlines")
print("progress\\rmore\\r", end="", file=sys.stderr)
print("", file=sys.stderr, flush=True)
os.write(2, b"below Python\\n")
subprocess.run([sys.executable, "-c", CHILD], check=True)
print("unended", end="", file=sys.stderr, flush=True)
warnings.warn("old")
thread = threading.Thread(target=lambda: 1 / 0, name="worker")
thread.start()
thread.join()
raise RuntimeError("unforeseen")
'''


@pytest.fixture(scope="module")
def ended():
    return run(PROGRAM)


def run(program: str, **environ: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONWARNINGS"}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env=inherited | environ,
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


def lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def outputs(done: subprocess.CompletedProcess[str]) -> list[str]:
    told = [line["message"] for line in lines(done.stdout) if line["logger"] == "output"]
    return [message for message in told if not message.startswith("{")]


def test_a_record_is_one_line(ended):
    """Time in UTC, level, logger, message with its line breaks, process; the own fields beside them."""
    first, second, third, *_ = (line for line in lines(ended.stdout) if line["logger"] != "output")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", first.pop("time"))
    assert first == {
        "level": "INFO",
        "logger": "vllm.engine",
        "message": "started 2\nworkers",
        "process": "MainProcess",
    }
    assert (second["logger"], second["level"], second["message"]) == ("somebody", "WARNING", "näher")
    assert third["status"] == 200
    assert "request_id" not in third


def test_a_request_s_lines_have_its_id_and_their_exception(ended):
    """The traceback is a field, not more lines."""
    (failed,) = (line for line in lines(ended.stdout) if line["message"] == "it failed")
    assert failed["request_id"] == "run-7"
    assert failed["exception"].startswith("Traceback")
    assert failed["exception"].endswith("KeyError: 'missing'")


def test_what_is_printed_is_a_line_too(ended):
    """Each printed line and each step of a progress bar, none for empty ones; all on standard output."""
    assert outputs(ended) == ["two", "lines", "progress", "more", "below Python", "of a child", "unended"]
    assert ended.stderr == ""


def test_records_of_other_processes_stay_as_they_are(ended):
    """They are JSON already; what only begins like one is not."""
    told = {line["message"]: line["logger"] for line in lines(ended.stdout)}
    assert told["from a child"] == "child"
    assert told['{"time": no'] == "output"


def test_what_nobody_caught_is_a_line_too(ended):
    """Warnings, and the errors that end a thread or the process, with their tracebacks."""
    warned, thread, process = [line for line in lines(ended.stdout) if line["logger"] != "output"][-3:]
    assert warned["logger"] == "py.warnings"
    assert ("worker" in thread["message"], "ZeroDivisionError" in thread["exception"]) == (True, True)
    assert (process["level"], "RuntimeError: unforeseen" in process["exception"]) == ("CRITICAL", True)
    assert ended.returncode == 1


def test_nothing_is_told_twice_or_below_its_level(ended):
    """The engine's level is vLLM's variable; uvicorn's own access line is off."""
    messages = [line["message"] for line in lines(ended.stdout)]
    assert len(set(messages)) == len(messages)
    assert not {"quiet", "twice"} & set(messages)
    loud = run(PROGRAM, VLLM_LOGGING_LEVEL="debug")
    assert "quiet" in [line["message"] for line in lines(loud.stdout)]


def test_nothing_that_is_written_stops_the_log():
    """Neither a line without an end, nor one that is too deep to parse: what comes after it is told."""
    program = """
import os
from server import json_log
json_log.configure()
os.write(1, b'{"time": ' + b"[" * 200_000 + b"\\n")
for _ in range(3):
    os.write(2, b"x" * 600_000)
os.write(2, b"\\nlast\\n")
"""
    told = [line["message"] for line in lines(run(program).stdout)]
    assert told[0].startswith('{"time": [[')
    assert "".join(told[1:-1]) == "x" * 1_800_000
    assert len(told) == 4
    assert told[-1] == "last"


def test_processes_to_come_are_told():
    """By the variable that vLLM's processes read; a value of the operator's for the bars stays."""
    program = (
        "from server import json_log; import os; e = {'TQDM_DISABLE': '0'}; json_log.configure(e); print(e)"
    )
    (line,) = lines(run(program).stdout)
    assert line["message"] == str({"TQDM_DISABLE": "0", "VLLM_LOGGING_CONFIG_PATH": str(json_log.PATH)})
    assert json_log.configured({"VLLM_LOGGING_CONFIG_PATH": str(json_log.PATH)})
    assert not json_log.configured({"VLLM_LOGGING_CONFIG_PATH": "/other.json"})
