"""Which parts of messages are media, and what is said of those that no model takes."""

import pytest

from server.errors import InvalidRequest
from server.media_parts import PlacedPart, media_parts

TEXT = {"type": "text", "text": "See?"}


def found(*parts, **message):
    messages = [{"role": "user", "content": "Hello."}, {"role": "user", "content": list(parts), **message}]
    return list(media_parts(messages, "messages"))


@pytest.mark.parametrize(
    ("part", "modality"),
    [
        ({"type": "image_url", "image_url": {"url": "u"}}, "image"),
        ({"type": "input_image", "image_url": "u"}, "image"),
        ({"type": "image_embeds", "image_embeds": "…"}, "image"),
        ({"type": "video_url", "video_url": {"url": "u"}}, "video"),
        ({"type": "audio_url", "audio_url": {"url": "u"}}, "audio"),
        ({"type": "input_audio", "input_audio": {"data": "", "format": "wav"}}, "audio"),
        ({"image_url": "u"}, "image"),
        ({"type": "anything", "uuid": "1", "video_url": "u"}, "video"),
        ({"uuid": "1", "audio_url": None}, "audio"),
    ],
)
def test_a_part_is_known_by_its_type_or_its_link(part, modality):
    """As vLLM knows it, cached parts without a link among them; its place is told."""
    (known,) = found(TEXT, part)
    assert (known.path, known.modality) == ("messages.1.content.1", modality)


@pytest.mark.parametrize("linked", ["u", {"url": "u"}])
def test_a_link_is_told_in_either_form(linked):
    """So that what cannot be had is found again by it."""
    (known,) = found({"type": "video_url", "video_url": linked})
    assert known.url == "u"


@pytest.mark.parametrize("linked", [None, 5, {}, {"url": None}, []])
def test_what_is_no_link_is_none(linked):
    """Whoever reads the part says what is wrong with it."""
    (known,) = found({"type": "image_url", "image_url": linked})
    assert known.url is None


@pytest.mark.parametrize("part", [TEXT, "text", None, 5, {}, {"type": 5}, {"type": "text", "image_url": "u"}])
def test_other_parts_are_none(part):
    """Whatever is no part of media is left to whoever reads it."""
    assert found(part) == []


@pytest.mark.parametrize("messages", [None, "text", [], ["text"], [{"content": None}], [{}]])
def test_what_is_no_list_of_parts_has_none(messages):
    """Nor do what are no messages."""
    assert list(media_parts(messages, "messages")) == []


def test_outputs_of_functions_are_looked_at_where_asked():
    """As OpenAI's Responses API sends them back."""
    items = [{"type": "function_call_output", "output": [{"type": "input_image", "image_url": "u"}]}]
    assert list(media_parts(items, "input")) == []
    assert list(media_parts(items, "input", ("content", "output"))) == [
        PlacedPart("input.0.output.0", "image", "u")
    ]


def test_a_part_that_is_not_taken_is_named():
    """With what is taken instead."""
    part = PlacedPart("messages.1.content.1", "video")
    part.require(frozenset({"video"}))
    with pytest.raises(InvalidRequest, match="takes no video, only text, audio, image") as caught:
        part.require(frozenset({"image", "audio"}))
    assert caught.value.param == "messages.1.content.1"
