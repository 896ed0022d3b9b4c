"""Ids of media, as vLLM's own parser of messages finds them and its cache is asked for them."""

from types import SimpleNamespace

from vllm.renderers.chat_utils import AsyncMultiModalContentParser

from server.auth import Principal, current_principal
from server.media_ids import own_media


class Renderer:
    """What a renderer of vLLM's makes of messages: `ids` are the media's."""

    async def render_messages_async(self, messages, params):
        return messages, {"prompt": "x", **params}


async def asked(account_id, ids):
    """What the cache is asked for when the account names media so."""
    renderer = Renderer()
    own_media(renderer)
    token = current_principal.set(Principal("key", account_id, None, None))
    try:
        _, prompt = await renderer.render_messages_async([], {"multi_modal_uuids": ids})
    finally:
        current_principal.reset(token)
    return prompt["multi_modal_uuids"]


async def test_an_id_is_its_projects_own():
    """The same again for the project, another for others; what has no id keeps none."""
    mine = await asked("me", {"image": ["logo", None], "audio": ["logo"]})
    assert mine == await asked("me", {"image": ["logo", None], "audio": ["logo"]})
    assert mine["image"][1] is None
    yours = await asked("you", {"image": ["logo", mine["image"][0]]})
    assert not {*yours["image"]} & {"logo", *mine["image"]}


async def test_a_prompt_without_media_is_left_alone():
    renderer = Renderer()
    own_media(renderer)
    assert await renderer.render_messages_async(["m"], {"n": 1}) == (["m"], {"prompt": "x", "n": 1})


async def test_vllms_parser_hands_ids_on():
    """As `uuid` of a part: the seam would be a wrong one if it did not."""
    added = []
    tracker = SimpleNamespace(
        add=lambda modality, item: added.append((modality, item)),
        model_config=SimpleNamespace(allowed_local_media_path="", allowed_media_domains=None),
        allowed_local_media_path="",
        allowed_media_domains=None,
        media_io_kwargs=None,
        mm_processor_kwargs=None,
    )
    parser = AsyncMultiModalContentParser(tracker)
    parser.parse_image(None, "logo")
    [(modality, item)] = added
    assert modality == "image"
    assert (await item())[1] == "logo"
