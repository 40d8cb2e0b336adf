"""Moves money on somebody's behalf, after checking that they may."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime

from services.ledger.accounts import Account, AccountKind, check_may_move
from services.ledger.assets import Asset
from services.ledger.canonical import fingerprint, format_time
from services.ledger.commands import TransferCommand, request_key
from services.ledger.directory import Directory
from services.ledger.entries import Entry
from services.ledger.money import MoneyError, parse_minor
from services.ledger.units import RESERVED_SYSTEMS, Key, wrong_moment
from services.ledger.writer import Writer
from services.runtime.caller import Caller
from services.runtime.errors import (
    ServiceError,
    Violation,
    denied,
    failed_precondition,
    invalid,
)


@dataclass(frozen=True, slots=True)
class Wish:
    """A transfer as the caller asked for it; either request_id or source_* are set."""

    request_id: str
    source_system: str
    source_reference: str
    debit_account_id: str
    credit_account_id: str
    asset: str
    value: str
    description: str
    occur_time: datetime | None

    def key(self, tenant_id: str) -> Key:
        """Return the permanent key of the transfer."""
        if self.request_id:
            return request_key(tenant_id, "Transfer", self.request_id)
        return Key(tenant_id, self.source_system, self.source_reference)


class Transferring:
    """What Transfer does."""

    def __init__(self, directory: Directory, writer: Writer, clock: Callable[[], datetime]) -> None:
        self._directory = directory
        self._writer = writer
        self._clock = clock

    async def transfer(self, caller: Caller, wish: Wish) -> Entry:
        """Move the money, or return the entry of an earlier identical request."""
        if wish.source_system in RESERVED_SYSTEMS:
            raise denied(
                "SOURCE_SYSTEM_RESERVED",
                f"The source_system {wish.source_system!r} belongs to one of Cogni's services.",
                metadata={"source_system": wish.source_system},
            )
        if wish.occur_time is not None:
            wrong = wrong_moment(wish.occur_time, self._clock())
            if wrong is not None:
                raise invalid(Violation("occur_time", wrong))
        debit = await self._directory.need(caller.tenant_id, wish.debit_account_id)
        credit = await self._directory.need(caller.tenant_id, wish.credit_account_id)
        check_may_move(debit, caller.owner, caller.scopes)
        check_counterparts(debit, credit)
        amount = amount_in(debit, wish.asset, wish.value)
        (outcome,) = await self._writer.submit(
            [
                TransferCommand(
                    wish.key(caller.tenant_id),
                    _content_hash(wish, amount),
                    debit,
                    credit,
                    amount,
                    wish.description,
                    wish.occur_time,
                )
            ]
        )
        if isinstance(outcome, ServiceError):
            raise outcome
        assert isinstance(outcome, Entry)
        return outcome


def check_counterparts(debit: Account, credit: Account) -> None:
    """Raise unless money may move between the two accounts at all."""
    if credit.kind in (AccountKind.USAGE, AccountKind.ROUNDING):
        raise failed_precondition(
            "ACCOUNT_NOT_ALLOWED",
            "Only charges and rounding move money into this account.",
            metadata={"account_id": credit.account_id},
        )
    if debit.asset is not credit.asset:
        raise asset_mismatch(debit)


def amount_in(account: Account, asset: str, value: str, field: str = "amount") -> int:
    """Return an amount in the account's minor units; raises when it is none of its asset."""
    if asset != account.asset.code:
        raise asset_mismatch(account)
    return parse_sum(account.asset, asset, value, field)


def parse_sum(asset: Asset, code: str, value: str, field: str) -> int:
    """Return a sum in minor units; raises INVALID_ARGUMENT that names the field."""
    if code != asset.code:
        raise invalid(Violation(f"{field}.asset", f"must be {asset.code}"))
    try:
        return parse_minor(value, asset)
    except MoneyError as error:
        raise invalid(Violation(f"{field}.value", str(error))) from None


def asset_mismatch(account: Account) -> ServiceError:
    """The sum or the other account is of another asset."""
    return failed_precondition(
        "ASSET_MISMATCH",
        f"The account {account.account_id!r} keeps {account.asset.code}; sums and counterparts "
        "must be of the same asset.",
        metadata={"account_id": account.account_id, "asset": account.asset.code},
    )


def _content_hash(wish: Wish, amount: int) -> bytes:
    return fingerprint(
        {
            "debit": wish.debit_account_id,
            "credit": wish.credit_account_id,
            "asset": wish.asset,
            "amount": str(amount),
            "description": wish.description,
            "occur_time": "" if wish.occur_time is None else format_time(wish.occur_time),
        }
    )
