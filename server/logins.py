"""Accounts that have a password: added, found by their address, changed, deleted."""

import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import delete, insert, select, update
from sqlalchemy.ext.asyncio import AsyncConnection

from server.database import Database
from server.errors import Conflict, Forbidden, NotFound
from server.projects import MembershipRow, require_left
from server.store import DEFAULT_ACCOUNT, DEFAULT_EMAIL, Account, AccountRow, LoginRow

# What browsers take, https://html.spec.whatwg.org/#valid-e-mail-address: hosts of private networks among it.
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_EMAIL = re.compile(rf"[\w.!#$%&'*+/=?^`{{|}}~-]+@{_LABEL}(?:\.{_LABEL})*", re.ASCII | re.IGNORECASE)
_LONGEST = 254


def email_address(written: str) -> str:
    """In the one form in which addresses are kept. Raises ValueError for what is none."""
    email = written.strip()
    if len(email) > _LONGEST or not _EMAIL.fullmatch(email):
        raise ValueError(f"an email is written as name@host, in at most {_LONGEST} ASCII characters")
    return email.lower()


@dataclass(frozen=True, slots=True)
class Login:
    """`password_hash` is None for an account without a password, which nobody logs in to."""

    account: Account
    password_hash: str | None


class Logins:
    """Every method is one transaction and raises Unavailable when the database does not answer.

    Addresses are those that `email_address` returns.
    """

    def __init__(self, database: Database) -> None:
        self._database = database

    async def add(self, email: str, password_hash: str) -> Account:
        """Raises Conflict where there is such an account."""
        account = Account(str(uuid.uuid4()), email, datetime.now(UTC))
        async with self._database.writing(alone=True) as connection:
            await _require_free(connection, email, "email")
            await connection.execute(
                insert(AccountRow).values(id=account.id, email=email, created_at=account.created_at)
            )
            await connection.execute(
                insert(LoginRow).values(account_id=account.id, password_hash=password_hash)
            )
        return account

    async def find(self, email: str) -> Login | None:
        async with self._database.reading() as connection:
            row = (await connection.execute(_LOGINS.where(AccountRow.email == email))).first()
        return None if row is None else _login(row)

    async def list(self) -> Sequence[Login]:
        """Oldest first, those without a password too, but no projects."""
        people = _LOGINS.where(AccountRow.id.not_in(select(MembershipRow.project_id)))
        async with self._database.reading() as connection:
            rows = (await connection.execute(people.order_by(AccountRow.created_at, AccountRow.id))).all()
        return [_login(row) for row in rows]

    async def set_password(self, account_id: str, password_hash: str) -> None:
        """Its first one too. Raises NotFound."""
        change = update(LoginRow).where(LoginRow.account_id == account_id)
        known = select(AccountRow.id).where(AccountRow.id == account_id)
        async with self._database.writing(alone=True) as connection:
            if (await connection.execute(known)).first() is None:
                raise NotFound(f"There is no account {account_id!r}.")
            if (await connection.execute(change.values(password_hash=password_hash))).rowcount == 0:
                await connection.execute(
                    insert(LoginRow).values(account_id=account_id, password_hash=password_hash)
                )

    async def set_email(self, account_id: str, email: str) -> None:
        """Raises Conflict where another account has it, NotFound."""
        change = update(AccountRow).where(AccountRow.id == account_id).values(email=email)
        async with self._database.writing(alone=True) as connection:
            await _require_free(connection, email, "new_email", account_id)
            if (await connection.execute(change)).rowcount == 0:
                raise NotFound(f"There is no account {account_id!r}.")

    async def delete(self, account_id: str) -> None:
        """With its keys, sessions, vectors, policies and all else.

        Raises NotFound, Forbidden, and Conflict for the only owner of a project.
        """
        if account_id == DEFAULT_ACCOUNT:
            raise Forbidden("The operator's own account has the keys made on the command line: it stays.")
        async with self._database.writing(alone=True) as connection:
            await require_left(connection, account_id)
            gone = await connection.execute(delete(AccountRow).where(AccountRow.id == account_id))
            if gone.rowcount == 0:
                raise NotFound(f"There is no account {account_id!r}.")


_LOGINS = select(AccountRow.id, AccountRow.email, AccountRow.created_at, LoginRow.password_hash).outerjoin(
    LoginRow, LoginRow.account_id == AccountRow.id
)


def _login(row: Any) -> Login:
    return Login(Account(row.id, row.email, row.created_at), row.password_hash)


async def _require_free(
    connection: AsyncConnection, email: str, param: str, account_id: str | None = None
) -> None:
    """`account_id` may have it already."""
    found = (await connection.execute(select(AccountRow.id).where(AccountRow.email == email))).scalar()
    # The operator's own address is taken even before its account is made.
    holder = DEFAULT_ACCOUNT if email == DEFAULT_EMAIL else found
    if holder not in (None, account_id):
        raise Conflict(f"There is an account of {email} already.", param=param, code="email_taken")
