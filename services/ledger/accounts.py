"""Accounts: what they are for, who may move their money, and what they can still pay."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from enum import IntEnum
from functools import lru_cache

from services.ledger.assets import Asset
from services.runtime.errors import ServiceError, denied
from services.runtime.ids import derive_id

#: Lets its bearer act on every account of the tenant.
ADMIN_SCOPE = "ledger:admin"


class AccountKind(IntEnum):
    """What an account is for; the values are those of the contract and of the table."""

    SPENDING = 1
    FUNDING = 2
    USAGE = 3
    OVERRUN = 4
    ROUNDING = 5

    @property
    def is_system(self) -> bool:
        """Whether the account is the system's own.

        System accounts have no limit, and their balances change only under the tenant's log
        head, so that a batch needs no lock on a row that every charge of the tenant touches.
        """
        return self >= AccountKind.USAGE

    @property
    def is_limited(self) -> bool:
        """Whether transfers and holds may not take the balance below the credit limit."""
        return self is AccountKind.SPENDING


SYSTEM_KINDS = tuple(kind for kind in AccountKind if kind.is_system)


@dataclass(frozen=True, slots=True)
class Account:
    """What never changes about an account. `credit_limit` is in minor units."""

    tenant_id: str
    account_id: str
    display_name: str
    asset: Asset
    kind: AccountKind
    owner: str
    credit_limit: int
    create_time: datetime


@dataclass(frozen=True, slots=True)
class Balance:
    """What an account has at one moment, in minor units; `held` is None for the past."""

    balance: int
    held: int | None
    sequence: int
    update_time: datetime | None


def available(account: Account, balance: int, held: int) -> int:
    """Return what a transfer or a hold can still take; never negative."""
    return max(0, balance + account.credit_limit - held)


# Every charge asks for the same few.
@lru_cache(maxsize=4096)
def system_account_id(tenant_id: str, asset: str, kind: AccountKind) -> str:
    """Return the id of the tenant's own account of this kind: the same for everyone who asks."""
    return derive_id("ledger-account", tenant_id, asset, kind.name)


def check_may_move(account: Account, subject: str, scopes: frozenset[str]) -> None:
    """Raise ACCOUNT_NOT_OWNED unless `subject` may take money out of `account`."""
    if ADMIN_SCOPE in scopes:
        return
    if account.kind is AccountKind.SPENDING and account.owner == subject:
        return
    raise _not_owned(account)


def check_may_create(
    kind: AccountKind, credit_limit: int, owner: str, subject: str, scopes: frozenset[str]
) -> None:
    """Raise SCOPE_MISSING when the account would let money appear that nobody brought in."""
    if ADMIN_SCOPE in scopes:
        return
    if kind is AccountKind.FUNDING or credit_limit > 0 or owner != subject:
        raise denied(
            "SCOPE_MISSING",
            "A FUNDING account, a credit limit and an account for somebody else need the scope "
            f"{ADMIN_SCOPE!r}.",
            metadata={"scope": ADMIN_SCOPE},
        )


def _not_owned(account: Account) -> ServiceError:
    return denied(
        "ACCOUNT_NOT_OWNED",
        "You do not own the account the money would leave; ask its owner, or a caller with the "
        f"scope {ADMIN_SCOPE!r}.",
        metadata={"account_id": account.account_id},
    )
