"""What Adaptive's requests say in their own way."""

import pytest

from server.adaptive_wire import (
    MAX_IMAGE_BYTES,
    ConstrainedDecoding,
    admit_images,
    functions,
    plain,
    session_uuid,
)
from server.errors import InvalidRequest
from server.oxen_wire import MediaPart

SESSION = "7d1a4c4e-3f5b-4e0b-9c55-1b1f0c9a9d11"


@pytest.mark.parametrize("value", ["s", "", 3, [], {"a": 1}, True, SESSION + "0"])
def test_a_session_is_a_uuid(value):
    """The refusal names the field."""
    with pytest.raises(InvalidRequest, match="session_id is a UUID"):
        session_uuid(value)


def test_a_session_is_written_in_one_way():
    """However it was sent."""
    assert session_uuid(SESSION.upper()) == session_uuid(SESSION.replace("-", "")) == SESSION


def test_notes_on_messages_stay_behind():
    """Ids and notes say nothing to the model; all else stays, what is no message too."""
    noted = {
        "role": "user",
        "content": "a",
        "name": "n",
        "id": "m",
        "completion_id": SESSION,
        "metadata": {"a": 1},
    }
    assert plain([noted, 3]) == [{"role": "user", "content": "a", "name": "n"}, 3]
    assert plain("x") == "x"
    with pytest.raises(InvalidRequest, match=r"messages\.1\.completion_id is a UUID"):
        plain([noted, {**noted, "completion_id": "x"}])


FUNCTION = {"type": "function", "function": {"name": "f"}}


@pytest.mark.parametrize(
    ("asked", "fields"),
    [
        ({}, {}),
        ({"use_tools": False}, {}),
        ({"tools": None, "use_tools": None}, {}),
        ({"tools": [FUNCTION]}, {}),
        ({"tools": [FUNCTION], "use_tools": True}, {}),
        ({"tools": [FUNCTION], "use_tools": False}, {"tool_choice": "none"}),
        ({"tools": [FUNCTION], "use_tools": False, "tool_choice": None}, {"tool_choice": "none"}),
        ({"tools": "x"}, {}),
    ],
)
def test_functions_are_taken(asked, fields):
    """As OpenAI's; `use_tools` false keeps them from being called. Another type is left to validation."""
    assert functions(asked) == fields


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"tools": [FUNCTION, {"id": "search", "enabled": True}]}, "tools.1"),
        ({"tools": [{"id": "search", "enabled": False}]}, "tools.0"),
        ({"use_tools": True}, "use_tools"),
        ({"use_tools": True, "tools": []}, "use_tools"),
        ({"use_tools": False, "tools": [FUNCTION], "tool_choice": "required"}, "use_tools"),
    ],
)
def test_tools_of_the_server_are_refused(asked, param):
    """There are none, and none is dropped in silence."""
    with pytest.raises(InvalidRequest) as raised:
        functions(asked)
    assert raised.value.param == param


@pytest.mark.parametrize(
    ("format", "schema", "field"),
    [
        ("json_schema", '{"type": "object"}', {"json_schema": {"type": "object"}}),
        ("json", "{}", {"json_schema": {}}),
        ("regex", "a+", {"regex_pattern": "a+"}),
        ("grammar", "start: A", {"grammar": "start: A"}),
    ],
)
def test_constrained_decoding_has_a_field_of_its_kind(format, schema, field):
    assert ConstrainedDecoding(schema=schema, format=format).field() == field


@pytest.mark.parametrize(
    "schema", ["{", "[]", '"a"', "NaN", '{"a": NaN}', "[" * 100_000, "[" * 200 + "]" * 200]
)
def test_a_schema_that_is_no_object_is_refused(schema):
    """By its field."""
    with pytest.raises(InvalidRequest, match=r"schema|JSON"):
        ConstrainedDecoding(schema=schema, format="json_schema").field()


def image(kind, size=3):
    return MediaPart("messages.0.content.1", "image_url", f"data:{kind};base64,{'A' * (size * 4 // 3)}")


def test_images_are_of_four_types_and_not_too_large():
    """What is linked to, or is no image, is not judged here."""
    linked = MediaPart("p", "image_url", "https://media.example/a.tiff")
    admit_images([image("image/png"), image("IMAGE/JPEG"), image("image/webp"), image("image/gif"), linked])
    admit_images(
        [image("image/png", MAX_IMAGE_BYTES), MediaPart("p", "audio_url", "data:audio/wav;base64,AA")]
    )
    for bad in (image("image/tiff"), image("text/plain"), image("image/png", MAX_IMAGE_BYTES + 10)):
        with pytest.raises(InvalidRequest) as raised:
            admit_images([bad])
        assert raised.value.param == "messages.0.content.1.image_url"
