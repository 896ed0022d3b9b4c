"""What the benchmarks ask is sound: every answer is right, and every task can be solved."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

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
