"""What the benchmarks ask is sound: every answer is right, and every task can be solved."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from jsonschema import Draft202012Validator

from server.policy_wire import PolicyRunRequest
from tests.bench.behaviors import SOURCES, area, mean_difference, peak, split
from tests.bench.behaviors import share as share_of_texts
from tests.bench.policy_value import code_jobs, extraction_jobs, scores, share

DATA = Path(__file__).parent / "bench" / "data"


def lines(name):
    return [json.loads(line) for line in (DATA / name).read_text().splitlines()]


EXTRACTIONS, TASKS = lines("extraction.jsonl"), lines("python_tasks.jsonl")

# Runs each program by itself and prints the numbers of those that failed.
RUN_ALL = """
import json, sys
failed = []
for number, program in enumerate(json.load(sys.stdin)):
    try:
        exec(compile(program, "<task>", "exec"), {})
    except Exception as error:
        failed.append(number)
print(json.dumps(failed))
"""


def failing(programs):
    """The numbers of the programs that raise, run by a process of their own."""
    ran = subprocess.run(
        [sys.executable, "-I", "-c", RUN_ALL],
        input=json.dumps(programs),
        capture_output=True,
        text=True,
        check=True,
        timeout=20,
    )
    return json.loads(ran.stdout)


def program(task, solution):
    return "\n\n".join([solution, *task["tests"]])


@pytest.mark.parametrize(("found", "count"), [(EXTRACTIONS, 100), (TASKS, 50)], ids=["extraction", "tasks"])
def test_no_prompt_comes_twice(found, count):
    """As many different prompts as the tables say."""
    assert len(found) == len({each["prompt"] for each in found}) == count


def test_answers_conform_to_their_schemas():
    """Two to four required fields, nothing else, and the true answer is one that a schema admits."""
    for each in EXTRACTIONS:
        schema = each["schema"]
        Draft202012Validator.check_schema(schema)
        Draft202012Validator(schema).validate(each["answer"])
        assert 2 <= len(schema["properties"]) <= 4
        assert schema["required"] == list(schema["properties"]) == list(each["answer"])
        assert schema["additionalProperties"] is False
        for kind in schema["properties"].values():
            assert kind["type"] in ("string", "integer", "boolean")
            assert kind["type"] != "string" or "maxLength" in kind or "enum" in kind


def test_answers_stand_in_the_text():
    """A prompt names its fields and what they may be, and its quoted text has strings and numbers as such."""
    for each in EXTRACTIONS:
        task, text = each["prompt"].removesuffix('"').split('\n"')
        for name, value in each["answer"].items():
            assert re.search(rf"\b{name}\b", task), (task, name)
            if isinstance(value, bool):
                assert "true or false" in task, task
            else:
                assert re.search(rf"(?<!\w){re.escape(str(value))}(?!\w)", text), (text, value)
            for option in each["schema"]["properties"][name].get("enum", ()):
                assert option in task, (task, option)
                assert option == value or not re.search(rf"\b{option}\b", text), (text, option)


def test_solutions_pass_their_tests():
    """A right answer exists, under the name that the prompt gives."""
    assert failing([program(task, task["solution"]) for task in TASKS]) == []
    for task in TASKS:
        assert f" {task['name']}(" in task["prompt"]
        assert 3 <= len(task["tests"]) <= 5


@pytest.mark.parametrize("answer", ["None", "given[0]", "0", "''", "True"])
def test_wrong_answers_fail_their_tests(answer):
    """A function that does nothing, or says the same to everything, solves no task."""
    wrong = [f"def {task['name']}(*given):\n    return {answer}" for task in TASKS]
    programs = [program(task, solution) for task, solution in zip(TASKS, wrong, strict=True)]
    assert failing(programs) == list(range(len(TASKS)))


def test_what_is_asked_is_understood():
    """Every request of the measurement is one that /policies/run takes, with a policy in full effect."""
    jobs = [job for number, task in enumerate(EXTRACTIONS) for job in extraction_jobs(number, task)]
    jobs += [job for number, task in enumerate(TASKS) for job in code_jobs(number, task)]
    assert len(jobs) == 4 * 100 + 3 * 50
    for job in jobs:
        assert PolicyRunRequest.model_validate(job.body).policy.candidates in (1, 4, 8)


@pytest.mark.parametrize(
    ("text", "scored"),
    [
        ('{"name": " BOB ", "age": 5, "tall": true}', (1, 1, 1, 1)),
        ('Here it is:\n```json\n{"name": "Bob", "age": 5, "tall": true}\n```', (0, 1, 1, 1)),
        ('{"name": "Bob", "age": "5", "tall": 1}', (1, 1, 0, 1 / 3)),
        ('{"name": "Bobby", "age": 5}', (1, 1, 0, 1 / 3)),
        ('{"name": "Bob", "age": 5, "ta', (0, 0, 0, 0)),
        ("Bob is 5 years old and tall.", (0, 0, 0, 0)),
        ("[5]", (0, 0, 0, 0)),
    ],
)
def test_answers_are_scored_field_by_field(text, scored):
    """Whether it is JSON, has JSON, conforms, and the share of true fields, types included."""
    kinds = {"name": {"type": "string"}, "age": {"type": "integer"}, "tall": {"type": "boolean"}}
    schema = {"type": "object", "properties": kinds, "required": list(kinds)}
    task = {"schema": schema, "answer": {"name": "Bob", "age": 5, "tall": True}}
    assert scores(text, task) == pytest.approx(scored)


def test_shares_come_with_intervals():
    """The mean and what resampled prompts give; nothing varies where all are alike."""
    assert share([1.0] * 9) == "**100 %** (100–100)"
    assert share([0.0, 1.0] * 50) == "**50 %** (40–60)"


@pytest.mark.parametrize("name", SOURCES)
def test_half_of_the_pairs_judge_a_behaviour(name):
    """They are others than it is made from, and the answers that show it stand on the same side."""
    learnt, held = split(name)
    assert min(len(learnt), len(held)) >= 40
    assert not {pair.prompt for pair in learnt} & {pair.prompt for pair in held}
    if name == "verbosity":
        assert np.mean([len(pair.positive) > 2 * len(pair.negative) for pair in held]) > 0.9


def test_how_behaviours_are_measured():
    """The probe against a mean by hand, areas and shares against counting."""
    above, below = [np.array([[2.0, 5.0]]), np.array([[4.0, 7.0]])], [np.array([[0.0, 5.0], [0.0, 5.0]])]
    below += [np.array([[2.0, 7.0]])]
    score = mean_difference(above, below)
    # Along the first axis alone; without the behaviour texts lie at 0 and 2.
    assert score(np.array([[1.0, 9.0], [3.0, 0.0]])) == pytest.approx([0.0, 2 / 2**0.5])
    assert peak(np.array([16.0, 0.0])) == 1.0
    assert area([1.0, 3.0], [0.0, 2.0]).startswith("**0.750** (")
    assert area([1.0], [0.0]) == "**1.000** (1.000–1.000)"
    assert share_of_texts([True, False, False, False]).startswith("**25 %** (0–")
