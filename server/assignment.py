"""Which of an A/B test's models a session gets."""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b

_WHOLE = 64  # bits of each of the two draws


@dataclass(frozen=True, slots=True)
class Assignment:
    """The model that a request of a campaign goes to."""

    campaign_id: str
    campaign_key: str
    model: str


def drawn(
    campaign_id: str, session_id: str, models: Sequence[str], *, traffic_split: float = 1.0
) -> str | None:
    """One of `models`, as likely as the others, for that share of sessions; None for the rest.

    A hash in place of a die: a session has the same model on every server, for as long as the campaign lasts,
    and no row says so. Each campaign is a key of its own, so that what a session got in the last one tells
    nothing of the next.
    """
    digest = blake2b(
        session_id.encode(errors="surrogatepass"), key=campaign_id.encode(), digest_size=_WHOLE // 4
    ).digest()
    taken, chosen = (int.from_bytes(half) for half in (digest[: _WHOLE // 8], digest[_WHOLE // 8 :]))
    if taken >= traffic_split * 2**_WHOLE:
        return None
    return models[chosen * len(models) >> _WHOLE]
