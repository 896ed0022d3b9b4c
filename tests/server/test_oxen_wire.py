"""The parts of Oxen.ai's messages, and the models it lists."""

from contextlib import suppress
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from server.errors import InvalidRequest
from server.media_hosts import MediaHosts
from server.oxen_wire import MediaPart, listed, parted
from server.served_models import ServedModels
from tests.oxen import MODEL, check

PIXEL = "data:image/png;base64,iVBORw0KGgo="
TEXT = {"type": "text", "text": "Look."}


def messages(*parts):
    return [{"role": "system", "content": "Be brief."}, {"role": "user", "content": list(parts)}]


@pytest.mark.parametrize("kind", ["image_url", "video_url", "audio_url"])
@pytest.mark.parametrize("flat", [True, False])
def test_links_are_read_flat_and_as_objects(kind, flat):
    """Both become vLLM's form, and are known by their place."""
    url = "https://media.example/a"
    read, media = parted(messages(TEXT, {"type": kind, kind: url if flat else {"url": url}}))
    assert read == messages(TEXT, {"type": kind, kind: {"url": url}})
    assert media == (MediaPart("messages.1.content.1", kind, url),)


@pytest.mark.parametrize("given", [None, 3, "text", {"a": 1}, [], [3], [{"role": "user"}], messages(TEXT)])
def test_what_holds_no_links_stays_as_it_is(given):
    """Wrong types among it, of which validation tells."""
    assert parted(given) == (given, ())


@pytest.mark.parametrize(
    ("part", "field", "says"),
    [
        ("Look.", "messages.1.content.0.type", "one of text"),
        ({}, "messages.1.content.0.type", "one of text"),
        ({"image_url": {"url": PIXEL}}, "messages.1.content.0.type", "one of text"),
        ({"type": "image_pil", "image_pil": "x"}, "messages.1.content.0.type", "one of text"),
        ({"type": "input_audio", "input_audio": {}}, "messages.1.content.0.type", "one of text"),
        ({"type": ["text"]}, "messages.1.content.0.type", "one of text"),
        ({"type": "text"}, "messages.1.content.0.text", "text"),
        ({"type": "text", "text": None}, "messages.1.content.0.text", "text"),
        ({**TEXT, "tone": "dry"}, "messages.1.content.0.tone", "unknown"),
        ({"type": "image_url"}, "messages.1.content.0.image_url", "url"),
        ({"type": "image_url", "image_url": {}}, "messages.1.content.0.image_url", "url"),
        ({"type": "image_url", "image_url": {"url": 3}}, "messages.1.content.0.image_url", "url"),
        (
            {"type": "image_url", "image_url": {"url": PIXEL, "detail": "low"}},
            "messages.1.content.0.image_url.detail",
            "auto",
        ),
        (
            {"type": "image_url", "image_url": {"url": PIXEL, "size": 1}},
            "messages.1.content.0.image_url.size",
            "unknown",
        ),
        (
            {"type": "image_url", "image_url": {"url": PIXEL}, "uuid": "u"},
            "messages.1.content.0.uuid",
            "unknown",
        ),
        ({"type": "file", "file": {"file_data": PIXEL}}, "messages.1.content.0", "not read"),
    ],
)
def test_a_faulty_part_is_refused_by_its_place(part, field, says):
    """With what would be right."""
    with pytest.raises(InvalidRequest, match=says) as raised:
        parted(messages(part))
    assert raised.value.param == field


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)
KINDS = st.sampled_from(["text", "image_url", "video_url", "audio_url", "file"])


@given(kind=KINDS | JSON, value=JSON, more=st.dictionaries(st.sampled_from(["detail", "url"]), JSON))
def test_any_json_is_a_part_or_is_refused(kind, value, more):
    """Whatever stands in a part, its link or beside it: nothing but InvalidRequest is raised."""
    for part in (
        value,
        {"type": kind, "text": value},
        {"type": kind, str(kind): value},
        {"type": kind, **more},
    ):
        for sent in (
            messages(part),
            [{"role": "user", "content": [{**more, "type": kind, str(kind): more}]}],
        ):
            with suppress(InvalidRequest):
                parted(sent)
                for each in parted(sent)[1]:
                    each.admit(ALL, HOSTS)


ALL = frozenset({"image", "video", "audio"})
HOSTS = MediaHosts.of(["media.example"])
PLACE = "messages.0.content.1"


@pytest.mark.parametrize("url", [PIXEL, "https://media.example/a.png", "DATA:image/png;base64,AAAA"])
def test_a_part_is_admitted(url):
    """Of a modality that the model takes: from a listed host, or sent along."""
    MediaPart(PLACE, "image_url", url).admit(ALL, HOSTS)


@pytest.mark.parametrize("kind", ["image", "video", "audio"])
def test_a_modality_that_is_not_taken(kind):
    """The refusal names the part, and what the model takes, even where its URL is wrong too."""
    taken = ALL - {kind}
    for url in (PIXEL, "file:///etc/passwd"):
        with pytest.raises(InvalidRequest, match=f"takes no {kind}, only text, ") as raised:
            MediaPart(PLACE, f"{kind}_url", url).admit(taken, HOSTS)
        assert raised.value.param == PLACE


@pytest.mark.parametrize(
    "url",
    [
        "https://elsewhere.example/a.png",
        "file:///etc/passwd",
        "http://127.0.0.1/",
        "data:image/png;base64",
        "data:image/png;base64,",
        "data:image/png,plain",
        "",
    ],
)
def test_a_url_that_is_not_fetched(url):
    """The refusal names the URL's place, as a file that cannot be had."""
    with pytest.raises(InvalidRequest) as raised:
        MediaPart(PLACE, "image_url", url).admit(ALL, HOSTS)
    assert (raised.value.param, raised.value.reason) == (f"{PLACE}.image_url.url", "invalid_file_input")


def served(root="org/base", lora=(), modalities=frozenset()):
    paths = [SimpleNamespace(name=name, model_path=root) for name in ("base", "alias")]
    return ServedModels(
        SimpleNamespace(base_model_paths=paths, lora_requests=dict.fromkeys(lora)), 7, modalities
    )


def test_every_served_name_is_a_model():
    """Base models under all their names, adapters as custom ones of the first."""
    base, alias, adapter = listed(served(lora=["tuned"], modalities=frozenset({"video", "image"})))
    for model in (base, alias, adapter):
        check(model.model_dump(), MODEL)
        assert (model.created, model.capabilities.input) == (7, ["text", "image", "video"])
    assert [each.id for each in (base, alias, adapter)] == ["base", "alias", "tuned"]
    assert [each.model_type for each in (base, alias, adapter)] == ["base", "base", "custom"]
    assert (base.deployments, base.source_model, base.developer.name) == ([], None, "org")
    assert (len(adapter.deployments), adapter.source_model, adapter.developer) == (1, "base", None)


def test_local_files_have_no_developer(tmp_path, monkeypatch):
    """Neither by a path from the root nor by one that looks like a hub's name."""
    (tmp_path / "org" / "base").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for root in (str(tmp_path), "org/base", "base", "./base"):
        assert listed(served(root))[0].developer is None, root
