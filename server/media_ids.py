"""The ids that clients give to media (`uuid`): each names what its own project sent before.

vLLM keeps media by them for all its clients: who knew or guessed another's would be answered about it, and
could put other media in its place.
"""

import hashlib
from typing import Any

from server.auth import current_principal


def own_media(renderer: Any) -> None:
    """Have `renderer`, through which every route's messages go, take ids for the caller's project's own."""
    render = renderer.render_messages_async

    async def rendering(messages: Any, params: Any) -> Any:
        conversation, prompt = await render(messages, params)
        principal = current_principal.get(None)
        if principal is not None and (named := prompt.get("multi_modal_uuids")):
            prompt["multi_modal_uuids"] = {
                modality: [None if each is None else _own(principal.account_id, each) for each in ids]
                for modality, ids in named.items()
            }
        return conversation, prompt

    renderer.render_messages_async = rendering


def _own(account_id: str, media_id: str) -> str:
    return hashlib.sha256(f"{account_id}/{media_id}".encode()).hexdigest()
