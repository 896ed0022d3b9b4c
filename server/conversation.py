"""A conversation as clients send it back: its answers with all that they carried beside what they said."""

from typing import Any


def sent_back(messages: Any) -> Any:
    """`messages` without what says nothing: nulls, no annotations, an answer's id, a call's index, which is
    its place.

    Answers have them, and clients append an answer to the conversation as it is. What are no messages stays.
    """
    return [_message(each) for each in messages] if isinstance(messages, list) else messages


def _message(message: Any) -> Any:
    if not isinstance(message, dict):
        return message
    said = {name: value for name, value in message.items() if value is not None or name == "content"}
    if said.get("annotations") == []:
        del said["annotations"]
    if said.get("role") == "assistant" and isinstance(said.get("id"), str):
        del said["id"]
    if isinstance(calls := said.get("tool_calls"), list):
        said["tool_calls"] = [_call(each) for each in calls]
    return said


def _call(call: Any) -> Any:
    if not isinstance(call, dict) or not isinstance(call.get("index"), int):
        return call
    return {name: value for name, value in call.items() if name != "index"}
