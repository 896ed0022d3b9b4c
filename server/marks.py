"""What chat completions carry beside OpenAI's fields, so that the clients of all dialects find their own."""

import json
import re
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any
from uuid import UUID, uuid4, uuid5

from server.completion_ids import completion_id
from server.streams import sse

_SESSIONS = UUID("b5c1f3a2-43f1-5d0c-8f0e-52f0b7a1c9d4")


def told_session(session_id: str | None) -> str:
    """The UUID by which answers name a session: itself where it is one, a new one where there is none."""
    if session_id is None:
        return str(uuid4())
    try:
        return str(UUID(session_id))
    except ValueError:
        return str(uuid5(_SESSIONS, session_id))


class Marks:
    """The session of an answer; of each choice its id and `model`, which answers.

    `texts`: every piece of a choice has an id, a role and a text, as Adaptive's clients read them. OpenAI's
    join whatever is text in the pieces, and know an answer without any by null.
    """

    def __init__(self, account_id: str, session_id: str, model: str | None, *, texts: bool = False) -> None:
        self._account_id, self._session_id, self._model = account_id, session_id, model
        self._texts = texts
        self._head = f'"session_id":{_text(session_id)},"choices":['
        self._choices: dict[tuple[str, str], tuple[str, str]] = {}

    def body(self, body: dict[str, Any]) -> dict[str, Any]:
        """A whole answer, marked in place."""
        body["session_id"] = self._session_id
        for choice in body["choices"]:
            self._mark(choice, body["id"])
            message = choice["message"]
            message["id"] = choice["completion_id"]
            if self._texts:
                message["content"] = message.get("content") or ""
        return body

    def event(self, event: str) -> str:
        """An event of a stream. The chunks that vLLM writes are not parsed: what they lack is put in between,
        before all that they say of the same name."""
        if not event.startswith('data: {"') or event.startswith('data: {"error"'):
            return event
        found = _CHUNK.match(event)
        if found is None:
            return self._parsed(event)
        head, id_, index = found.groups()
        if index is None:
            return f"{head}{self._head}{event[found.end() :]}"
        rest = event[found.end() :]
        choice, delta = self._fragments(id_, index)
        if not self._texts:
            return f'{head}{self._head}{{{choice}"index":{index},"delta":{{{rest}'
        if rest.startswith('"content":"') and '"role":' not in rest:
            lacks = f'{delta},"role":"assistant",'
        elif rest.startswith('"role":"assistant","content":"'):
            lacks = f"{delta},"
        elif rest.startswith("}"):
            lacks = f'{delta},"role":"assistant","content":""'
        elif rest.startswith(('"reasoning":"', '"tool_calls":[')) and not _SAID.search(rest):
            lacks = f'{delta},"role":"assistant","content":"",'
        else:
            return self._parsed(event)
        return f'{head}{self._head}{{{choice}"index":{index},"delta":{{{lacks}{rest}'

    def _fragments(self, id_: str, index: str) -> tuple[str, str]:
        known = self._choices.get((id_, index))
        if known is None:
            own = _text(completion_id(self._account_id, id_, int(index)))
            model = "" if self._model is None else f'"model":{_text(self._model)},'
            known = self._choices[id_, index] = (f'"completion_id":{own},{model}', f'"id":{own}')
        return known

    def _parsed(self, event: str) -> str:
        chunk: dict[str, Any] = json.loads(event[6:])
        for choice in chunk["choices"]:
            self._mark(choice, chunk["id"])
            if self._texts:
                own = {"id": choice["completion_id"], "role": "assistant", "content": ""}
                choice["delta"] = {**own, **_present(choice["delta"])}
        return sse({**chunk, "session_id": self._session_id})

    def _mark(self, choice: dict[str, Any], id_: str) -> None:
        choice["completion_id"] = completion_id(self._account_id, id_, choice["index"])
        choice.setdefault("model", self._model)


async def marked(stream: AsyncGenerator[str, None], marks: Marks) -> AsyncGenerator[str, None]:
    """`stream`, each event marked."""
    async with aclosing(stream):
        async for event in stream:
            yield marks.event(event)


def _present(delta: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in delta.items() if value is not None}


# A chunk up to its delta, as vLLM writes it: one choice, or none where it tells the usage.
_CHUNK = re.compile(
    r'(data: \{"id":"([^"\\]*)","object":"[^"\\]*","created":\d+,"model":"(?:[^"\\]|\\.)*",)"choices":\['
    r'(?:\{"index":(\d+),"delta":\{|(?=\]))'
)
_SAID = re.compile('"(?:role|content)":')  # a name: within a text its quotes would be escaped


def _text(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)
