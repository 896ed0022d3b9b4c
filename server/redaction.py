"""What must not be stored: matches of an operator's patterns, in every text that the database is to keep."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

REDACTED = "[redacted]"
# Keys whose values are words of a protocol, not of a person.
_PROTOCOL = frozenset({"role", "type", "object", "finish_reason"})
# What spells a text token by token, where no pattern would find it.
_SPELLED = frozenset({"logprobs", "prompt_logprobs", "token_ids", "prompt_token_ids"})


class Redaction:
    """Replaces what any of `patterns` matches; without patterns nothing is changed."""

    def __init__(self, patterns: Sequence[str] = ()) -> None:
        """Raises re.error."""
        self._patterns = [re.compile(pattern) for pattern in patterns]

    def text(self, text: str | None) -> str | None:
        for pattern in self._patterns if text else ():
            text = pattern.sub(REDACTED, text)  # type: ignore[arg-type]  # None has no patterns
        return text

    def json(self, value: Any) -> Any:
        """A copy of `value`, its texts redacted. With patterns, what spells texts token by token is null."""
        return self._json(value) if self._patterns else value

    def _json(self, value: Any) -> Any:
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, Mapping):
            return {key: self._value(key, each) for key, each in value.items()}
        if isinstance(value, list | tuple):
            return [self._json(each) for each in value]
        return value

    def _value(self, key: Any, value: Any) -> Any:
        if key in _SPELLED:
            return None
        return value if key in _PROTOCOL and isinstance(value, str) else self._json(value)


NOTHING_REDACTED = Redaction()


def read_patterns(path: Path) -> tuple[str, ...]:
    """One regular expression a line; empty lines and those that begin with # say nothing.

    Raises ValueError, naming file and line, for one that does not compile or matches the empty text.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"redact (--redact): {path} cannot be read: {error}") from error
    patterns = []
    for number, line in enumerate(lines, 1):
        if not line.strip() or line.startswith("#"):
            continue
        try:
            empty = re.compile(line).match("")
        except re.error as error:
            raise ValueError(f"redact (--redact): {path}, line {number}: {error}") from error
        if empty:
            raise ValueError(f"redact (--redact): {path}, line {number} matches the empty text")
        patterns.append(line)
    return tuple(patterns)
