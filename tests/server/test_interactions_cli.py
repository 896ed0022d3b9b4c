"""`steersman interactions export`, on the database alone."""

import argparse
import asyncio
import json
import sys
from dataclasses import replace
from datetime import timedelta

import pytest

from server import interactions_cli
from server.comparisons import Comparisons, Tie
from server.completion_ids import completion_id
from server.completion_rows import prompt_hash
from server.database import Database
from server.feedback import FeedbackStore
from server.interactions import Interactions
from server.project_metrics import MetricKind, ProjectMetrics, Scoring
from server.store import Store
from steering.train.pairs import Pair, read_jsonl
from tests.server.test_interactions import NOW, ONE, named


@pytest.fixture
def steersman(database_url, capsysbinary):
    """Run `steersman interactions …` in this process: its status, standard output and standard error."""
    parser = argparse.ArgumentParser("steersman")
    interactions_cli.add_parser(parser.add_subparsers())

    def run(*arguments):
        words = ["interactions", "--steersman-database-url", database_url, *map(str, arguments)]
        status = interactions_cli.run(parser.parse_args(words))
        captured = capsysbinary.readouterr()
        return status, captured.out.decode(), captured.err.decode()

    return run


@pytest.fixture
def keep(database_url):
    """Store interactions in the database."""

    def kept(*interactions):
        async def act():
            store = Store(database_url)
            await store.first_key()
            await Interactions(store.database).keep(interactions)
            await store.close()

        Store(database_url).migrate()
        asyncio.run(act())

    return kept


def asked(name, prompt, text, **labels):
    """An interaction of one message and one answer."""
    message = {"role": "assistant", "content": text}
    answer = {**ONE.answer, "choices": [{"index": 0, "message": message}]}
    messages = [{"role": "user", "content": prompt}]
    return named(name, messages=messages, answer=answer, labels=labels)


def lines(text):
    return [json.loads(line) for line in text.split("\n") if line]


def test_everything_stored_is_exported(steersman, keep, monkeypatch):
    """One JSON object a line, oldest first, over any number of pages."""
    monkeypatch.setattr(interactions_cli, "_PAGE", 2)
    keep(ONE, *(named(f"c{index}") for index in range(4)))
    status, out, err = steersman("export")
    assert status == 0, err
    first, *others = lines(out)
    assert first == {
        "id": ONE.id,
        "account_id": ONE.account_id,
        "created_at": "2026-03-01T12:00:00.250000+00:00",
        "model": "base",
        "session_id": "s-1",
        "user_id": None,
        "source": "LIVE",
        "campaign_id": None,
        "variant": None,
        "prompt_hash": prompt_hash(ONE.messages),
        "completion_ids": [completion_id(ONE.account_id, ONE.id, 0)],
        "metadata": ONE.labels,
        "prompt": ONE.messages[0]["content"][0]["text"],
        "completion": "a pear",
        "messages": ONE.messages,
        "choices": ONE.answer["choices"],
        "steersman": ONE.answer["steersman"],
        "feedback": [],
        "comparisons": [],
        "parameters": ONE.parameters,
        "prompt_tokens": 7,
        "completion_tokens": 2,
        "latency_ms": 12.5,
        "first_token_ms": 3.25,
    }
    assert [each["id"] for each in others] == ["c0", "c1", "c2", "c3"]
    assert err == "Exported 5 interactions.\n"


def test_what_is_exported_can_be_chosen(steersman, keep):
    keep(
        named("a", labels={"team": "x"}),
        named("b", labels={"team": "x", "rating": "good"}, created_at=NOW + timedelta(days=2)),
        named("c", model="adapter", labels={}),
    )

    def exported(*flags):
        status, out, err = steersman("export", *flags)
        assert status == 0, err
        return [each["id"] for each in lines(out)]

    assert exported("--model", "adapter") == ["c"]
    assert exported("--metadata", "team=x") == ["a", "b"]
    assert exported("--metadata", "team=x", "--metadata", "rating=good") == ["b"]
    assert exported("--since", "2026-03-02") == ["b"]
    assert exported("--account", ONE.account_id) == ["a", "b", "c"]
    assert exported("--account", "nobody") == []


def test_pairs_are_what_vectors_are_made_from(steersman, keep, tmp_path):
    """Two answers to one prompt that a label of each tells apart, in the lines that training reads."""
    keep(
        asked("a", "Hi?", "Good day.", tone="formal"),
        asked("b", "Why?", "Because.", tone="formal"),
        asked("c", "Hi?", "Yo.", tone="casual"),
        asked("d", "Why?", "Dunno.", tone="casual"),
        asked("e", "Why?", "Shrug.", tone="casual"),
        asked("f", "Hi?", "Hello.", tone="other"),
        replace(ONE, labels={"tone": "formal"}, messages=[{"role": "system", "content": "x"}]),
    )
    path = tmp_path / "pairs.jsonl"
    flags = ("export", "--format", "pairs", "--positive", "tone=formal", "--output", path)
    status, out, err = steersman(*flags, "--negative", "tone=casual")
    assert (status, out) == (0, "")
    assert "Left out 2" in err
    assert "Exported 2 pairs." in err
    assert read_jsonl(path.read_text()) == (
        Pair("Hi?", "Good day.", "Yo."),
        Pair("Why?", "Because.", "Dunno."),
    )
    assert set(lines(path.read_text())[0]) == {"prompt", "positive_answer", "negative_answer"}
    status, _, err = steersman(*flags)
    assert status == 0, err
    assert read_jsonl(path.read_text()) == (Pair("Hi?", "Good day."), Pair("Why?", "Because."))


@pytest.fixture
def rate(database_url):
    """Give feedback on stored interactions, as (id, metric, value)."""

    def rated(*scores):
        async def act():
            database = Database(database_url)
            feedback = FeedbackStore(database)
            for name, metric, value in scores:
                await feedback.add(ONE.account_id, name, metric, value, reason="so", details=[1])
            await database.close()

        asyncio.run(act())

    return rated


def test_the_best_and_the_worst_answer_make_a_pair(steersman, keep, rate, tmp_path):
    """By the mean of what they were given for that metric; equal ones do not."""
    keep(
        asked("a", "Hi?", "Good day."),
        asked("b", "Hi?", "Yo."),
        asked("c", "Hi?", "Hm."),
        asked("d", "Why?", "Because."),
        asked("e", "Why?", "Dunno."),
        asked("f", "How?", "So."),
    )
    rate(
        *(("a", "polite", 1), ("a", "polite", 0), ("b", "polite", 0.25), ("c", "polite", 0.75)),
        *(("d", "polite", 1), ("e", "polite", 1), ("f", "polite", 1), ("e", "other", 0)),
    )
    path = tmp_path / "pairs.jsonl"
    status, _, err = steersman("export", "--format", "pairs", "--metric", "polite", "-o", path)
    assert status == 0, err
    assert read_jsonl(path.read_text()) == (Pair("Hi?", "Hm.", "Yo."),)
    assert "Left out 4" in err


def test_the_best_answer_by_a_cost_is_the_lowest(steersman, keep, rate, database_url, tmp_path):
    """Scores of other choices than the first say nothing of its text."""
    keep(asked("a", "Hi?", "Good day."), asked("b", "Hi?", "Yo."))

    async def act():
        database = Database(database_url)
        lower = Scoring.LOWER_IS_BETTER
        cost = await ProjectMetrics(database).create(
            ONE.account_id, key="cost", name="Cost", kind=MetricKind.SCALAR, scoring=lower
        )
        several = {**ONE.answer, "choices": [ONE.answer["choices"][0], {"index": 1, "message": {}}]}
        await Interactions(database).keep([replace(asked("c", "Hi?", ""), answer=several)])
        second = completion_id(ONE.account_id, "c", 1)
        await FeedbackStore(database).score(ONE.account_id, second, cost, -9)
        await database.close()

    asyncio.run(act())
    rate(("a", "cost", 1), ("b", "cost", 2))
    path = tmp_path / "pairs.jsonl"
    status, _, err = steersman("export", "--format", "pairs", "--metric", "cost", "-o", path)
    assert status == 0, err
    assert read_jsonl(path.read_text()) == (Pair("Hi?", "Good day.", "Yo."),)


def test_feedback_is_exported_with_its_interaction(steersman, keep, rate):
    keep(named("a"), named("b"))
    rate(("b", "polite", 1))
    status, out, err = steersman("export")
    assert status == 0, err
    bare, rated = lines(out)
    assert bare["feedback"] == []
    [given] = rated["feedback"]
    assert given.pop("created_at")
    assert given == {
        "choice": 0,
        "metric": "polite",
        "value": 1.0,
        "reason": "so",
        "details": [1],
        "user_id": None,
    }


def test_comparisons_are_exported_with_both_of_their_interactions(steersman, keep, database_url):
    """By their completions' ids; one of two choices of an answer stands there once."""
    several = [{"index": each, "message": {}} for each in (0, 1)]
    keep(named("a", answer={**ONE.answer, "choices": several}), named("b"), named("c"))
    first, second = (completion_id(ONE.account_id, "a", each) for each in (0, 1))
    other = completion_id(ONE.account_id, "b", 0)

    async def act():
        database = Database(database_url)
        comparisons = Comparisons(database)
        await comparisons.add(ONE.account_id, "polite", first, other, tied=Tie.BAD, user_id="ann")
        await comparisons.add(ONE.account_id, "polite", second, first)
        await database.close()

    asyncio.run(act())
    for flags in ((), ("--account", ONE.account_id)):
        status, out, err = steersman("export", *flags)
        assert status == 0, err
        a, b, c = (one["comparisons"] for one in lines(out))
        for each in [*a, *b]:
            assert each.pop("created_at")
        tied = {"metric": "polite", "preferred": first, "other": other, "tied": "bad", "user_id": "ann"}
        won = {"metric": "polite", "preferred": second, "other": first, "tied": None, "user_id": None}
        assert (a, b, c) == ([tied, won], [tied], [])


def test_no_pairs_are_an_error(steersman, keep, tmp_path):
    """An empty file would only fail later, where vectors are made."""
    keep(asked("a", "Hi?", "Good day.", tone="formal"))
    path = tmp_path / "pairs.jsonl"
    status, _, err = steersman(
        "export", "--format", "pairs", "--positive", "tone=formal", "--negative", "tone=x", "-o", path
    )
    assert status == 1
    assert "there are no pairs" in err
    assert not path.exists()


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--format", "pairs"), "--positive"),
        (("--positive", "a=b"), "--format pairs"),
        (("--metric", "polite"), "--format pairs"),
        (("--format", "pairs", "--positive", "a=b", "--metric", "m"), "or --metric"),
        (("--format", "pairs", "--negative", "a=b", "--metric", "m"), "--negative goes"),
        (("--format", "parquet"), "--output"),
        (("--format", "pairs", "--positive", "a=b", "--negative", "a=b"), "same label"),
    ],
)
def test_flags_that_do_not_fit_are_refused(steersman, flags, said):
    status, _, err = steersman("export", *flags)
    assert status == 1
    assert said in err


@pytest.mark.parametrize("flags", [("--since", "soon"), ("--metadata", "team"), ("--metadata", "=x")])
def test_values_that_say_nothing_are_refused(steersman, flags):
    with pytest.raises(SystemExit):
        steersman("export", *flags)


def test_parquet_holds_the_same(steersman, keep, tmp_path):
    """Nested values are JSON in their columns."""
    parquet = pytest.importorskip("pyarrow.parquet", reason="pip install 'steersman[parquet]'")
    keep(ONE, named("b", session_id=None, first_token_ms=None, labels={}))
    path = tmp_path / "interactions.parquet"
    status, _, err = steersman("export", "--format", "parquet", "--output", path)
    assert status == 0, err
    first, second = parquet.read_table(path).to_pylist()
    assert first["created_at"] == NOW
    assert json.loads(first["messages"]) == ONE.messages
    assert (first["id"], first["prompt_tokens"], first["latency_ms"]) == (ONE.id, 7, 12.5)
    assert (second["session_id"], second["first_token_ms"]) == (None, None)
    assert json.loads(second["metadata"]) == {}


def test_without_its_package_parquet_says_what_to_install(steersman, keep, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    keep(ONE)
    status, _, err = steersman("export", "--format", "parquet", "-o", tmp_path / "x")
    assert status == 1
    assert "steersman[parquet]" in err
