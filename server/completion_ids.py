"""The ids by which the choices of chat completions are scored."""

import uuid

_NAMESPACE = uuid.UUID("6f2f7bd4-6c0c-5f0e-9a0f-2b6f7f6f7a11")


def completion_id(account_id: str, interaction_id: str, index: int) -> str:
    """A UUID for choice `index` of the chat completion `interaction_id`, which clients may have chosen.

    The same one wherever it is asked for, so that an answer can tell it before anything is stored.
    """
    return str(uuid.uuid5(_NAMESPACE, f"{account_id}/{index}/{interaction_id}"))
