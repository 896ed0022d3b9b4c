"""Interactions as files: everything as JSON lines or Parquet, or pairs of answers to one prompt."""

import json
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from statistics import fmean
from typing import Any, Self

from server.comparisons import Comparison
from server.completion_ids import completion_id
from server.completion_rows import choices
from server.feedback import Feedback
from server.interaction_rows import Key
from server.interactions import Interaction

_ROWS_AT_ONCE = 1000  # of a Parquet file's groups


def single_prompt(interaction: Interaction) -> str | None:
    """What the user said, where that is all that was asked: no system prompt, no earlier turns, only text."""
    if len(interaction.messages) != 1 or interaction.messages[0].get("role") != "user":
        return None
    content = interaction.messages[0].get("content")
    if isinstance(content, list) and all(part.get("type") == "text" for part in content):
        content = "\n".join(part["text"] for part in content)
    return content if isinstance(content, str) else None


def first_text(interaction: Interaction) -> str | None:
    """Of the first choice; None where it wrote nothing."""
    choices = interaction.answer["choices"]
    content = choices[0]["message"].get("content") if choices else None
    return content if isinstance(content, str) and content else None


def record(
    interaction: Interaction, feedback: Sequence[Feedback] = (), comparisons: Sequence[Comparison] = ()
) -> dict[str, Any]:
    """All that is stored, and for convenience the texts of a plain prompt and its answer."""
    return {
        "id": interaction.id,
        "account_id": interaction.account_id,
        "created_at": interaction.created_at.isoformat(),
        "model": interaction.model,
        "session_id": interaction.session_id,
        "user_id": interaction.user_id,
        "source": interaction.source,
        "campaign_id": interaction.campaign_id,
        "variant": interaction.variant,
        "prompt_hash": interaction.prompt_hash,
        "completion_ids": [
            completion_id(interaction.account_id, interaction.id, index)
            for index in choices(interaction.answer)
        ],
        "metadata": interaction.labels,
        "prompt": single_prompt(interaction),
        "completion": first_text(interaction),
        "messages": interaction.messages,
        "choices": interaction.answer["choices"],
        "steersman": interaction.answer.get("steersman"),
        "feedback": [_told(each) for each in feedback],
        "comparisons": [_compared(each) for each in comparisons],
        "parameters": interaction.parameters,
        "prompt_tokens": interaction.prompt_tokens,
        "completion_tokens": interaction.completion_tokens,
        "latency_ms": interaction.latency_ms,
        "first_token_ms": interaction.first_token_ms,
    }


def _told(given: Feedback) -> dict[str, Any]:
    return {
        "choice": given.choice,
        "metric": given.metric,
        "value": given.value,
        "reason": given.reason,
        "details": given.details,
        "user_id": given.user_id,
        "created_at": given.created_at.isoformat(),
    }


def _compared(given: Comparison) -> dict[str, Any]:
    return {
        "metric": given.metric,
        "preferred": given.preferred,
        "other": given.other,
        "tied": given.tied,
        "user_id": given.user_id,
        "created_at": given.created_at.isoformat(),
    }


def line(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode() + b"\n"


@dataclass(slots=True)
class Pairing:
    """Answers to the same prompt: those with the label `positive`, and beside them those with `negative`.

    A vector is made from what a user says in one message, so other conversations make no pair. `left_out`
    counts those, and the answers that lack a partner.
    """

    positive: tuple[str, str]
    negative: tuple[str, str] | None
    _answers: dict[str, tuple[list[str], list[str]]] = field(default_factory=dict)
    _unfit: int = 0

    def take(self, interaction: Interaction) -> None:
        sides = [
            side
            for side, label in enumerate((self.positive, self.negative))
            if label is not None and interaction.labels.get(label[0]) == label[1]
        ]
        if not sides:
            return
        prompt, text = single_prompt(interaction), first_text(interaction)
        if prompt is None or text is None or len(sides) > 1:
            self._unfit += 1
            return
        self._answers.setdefault(prompt, ([], []))[sides[0]].append(text)

    def pairs(self) -> Iterable[Mapping[str, str]]:
        """As /steering/generate's clients read them, line by line."""
        for prompt, (positives, negatives) in self._answers.items():
            if self.negative is None:
                for text in positives:
                    yield {"prompt": prompt, "positive_answer": text}
                continue
            for good, bad in zip(positives, negatives, strict=False):
                yield {"prompt": prompt, "positive_answer": good, "negative_answer": bad}

    @property
    def left_out(self) -> int:
        if self.negative is None:
            return self._unfit
        return self._unfit + sum(abs(len(good) - len(bad)) for good, bad in self._answers.values())


@dataclass(slots=True)
class Ranking:
    """Answers to the same prompt by their mean score: the best one beside the worst, where they differ."""

    scores: Mapping[Key, float]
    _answers: dict[str, list[tuple[float, str]]] = field(default_factory=dict)
    _unfit: int = 0

    @classmethod
    def of(cls, feedback: Mapping[Key, Sequence[Feedback]], metric: str, lower: Collection[str] = ()) -> Self:
        """In the accounts `lower` the lowest score is the best."""
        values = {
            key: [each.value for each in given if each.metric == metric and each.choice == 0]
            for key, given in feedback.items()
        }
        return cls(
            {key: fmean(each) * (-1 if key[0] in lower else 1) for key, each in values.items() if each}
        )

    def take(self, interaction: Interaction) -> None:
        score = self.scores.get((interaction.account_id, interaction.id))
        if score is None:
            return
        prompt, text = single_prompt(interaction), first_text(interaction)
        if prompt is None or text is None:
            self._unfit += 1
            return
        self._answers.setdefault(prompt, []).append((score, text))

    def pairs(self) -> Iterable[Mapping[str, str]]:
        """As `Pairing.pairs`."""
        for prompt, answers in self._answers.items():
            (low, bad), (high, good) = min(answers), max(answers)
            if high > low:
                yield {"prompt": prompt, "positive_answer": good, "negative_answer": bad}

    @property
    def left_out(self) -> int:
        scored = sum(map(len, self._answers.values()))
        return self._unfit + scored - 2 * sum(1 for _ in self.pairs())


async def write_parquet(records: AsyncIterator[Mapping[str, Any]], path: Path) -> int:
    """Returns how many; what is nested is JSON in a column of text. Raises ValueError without pyarrow."""
    try:
        import pyarrow as pa  # noqa: PLC0415  # an extra, which other formats do without
        from pyarrow import parquet  # noqa: PLC0415
    except ImportError as error:
        raise ValueError("--format parquet needs pyarrow: pip install 'steersman[parquet]'") from error
    text, whole, real = pa.string(), pa.int64(), pa.float64()
    kinds = {
        "id": text,
        "account_id": text,
        "created_at": pa.timestamp("us", tz="UTC"),
        "model": text,
        "session_id": text,
        **dict.fromkeys(("user_id", "source", "campaign_id", "variant", "prompt_hash"), text),
        **dict.fromkeys(("completion_ids", "metadata", "prompt", "completion", "messages", "choices"), text),
        **dict.fromkeys(("steersman", "feedback", "comparisons", "parameters"), text),
        "prompt_tokens": whole,
        "completion_tokens": whole,
        "latency_ms": real,
        "first_token_ms": real,
    }
    schema, written = pa.schema(list(kinds.items())), 0
    with parquet.ParquetWriter(path, schema) as writer:
        rows: list[dict[str, Any]] = []
        async for each in records:
            rows.append({**_flat(each), "created_at": datetime.fromisoformat(each["created_at"])})
            written += 1
            if len(rows) >= _ROWS_AT_ONCE:
                writer.write_table(pa.Table.from_pylist(rows, schema))
                rows = []
        if rows:
            writer.write_table(pa.Table.from_pylist(rows, schema))
    return written


def _flat(values: Mapping[str, Any]) -> dict[str, Any]:
    nested = (dict, list, tuple)
    return {
        name: json.dumps(value, ensure_ascii=False) if isinstance(value, nested) else value
        for name, value in values.items()
    }
