"""The two tokens of a session: JWTs that only this server's own processes can sign."""

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Final, Literal

import jwt

from server.errors import Unauthenticated

_ALGORITHM: Final = "HS256"
_ISSUER: Final = "steersman"

Use = Literal["access", "refresh"]


@dataclass(frozen=True, slots=True)
class Refresh:
    """What a refresh token says: of a session's tokens, each refresh makes the next `generation`."""

    session_id: str
    generation: int


class Tokens:
    """Signed and read. Readers raise Unauthenticated, which says what is wrong with a token."""

    def __init__(self, secret: bytes) -> None:
        self._secret = secret

    def access(self, session_id: str, account_id: str, life: timedelta) -> str:
        return self._signed("access", life, sid=session_id, sub=account_id)

    def refresh(self, refresh: Refresh, account_id: str, life: timedelta) -> str:
        return self._signed("refresh", life, sid=refresh.session_id, sub=account_id, gen=refresh.generation)

    def read_access(self, token: str) -> str:
        """The session's id."""
        return str(self._read("access", token)["sid"])

    def read_refresh(self, token: str) -> Refresh:
        claims = self._read("refresh", token)
        return Refresh(str(claims["sid"]), int(claims["gen"]))

    def _signed(self, use: Use, life: timedelta, **claims: str | int) -> str:
        now = datetime.now(UTC)
        standard = {"iss": _ISSUER, "aud": use, "iat": now, "exp": now + life, "jti": uuid.uuid4().hex}
        return jwt.encode({**standard, **claims}, self._secret, _ALGORITHM)

    def _read(self, use: Use, token: str) -> dict[str, Any]:
        try:
            return jwt.decode(
                token,
                self._secret,
                [_ALGORITHM],
                audience=use,
                issuer=_ISSUER,
                # Another host's clock may be a moment ahead: then a token seems to be from the future.
                options={"require": ["exp", "sub", "sid"], "verify_iat": False},
            )
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated(_EXPIRED[use], code="token_expired") from error
        except jwt.InvalidAudienceError as error:
            raise Unauthenticated(_OTHER[use], code="invalid_token") from error
        except jwt.InvalidTokenError as error:
            raise Unauthenticated(
                f"This is not {_NAMES[use]} token of this server.", code="invalid_token"
            ) from error


_NAMES: dict[Use, str] = {"access": "an access", "refresh": "a refresh"}
_EXPIRED: dict[Use, str] = {
    "access": "This access token has expired: POST /auth/refresh gives another for the refresh token.",
    "refresh": "This refresh token has expired: log in again.",
}
_OTHER: dict[Use, str] = {
    "access": "This is a session's refresh token: send its access token.",
    "refresh": "This is a session's access token: send its refresh token.",
}
