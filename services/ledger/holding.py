"""Sets money aside for runs and people, on behalf of whoever may, and gives it back in time."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from services.ledger.accounts import Account, AccountKind, check_may_move
from services.ledger.canonical import fingerprint, format_time
from services.ledger.commands import HoldAction, HoldCommand, HoldOutcome, request_key
from services.ledger.directory import Directory
from services.ledger.holds import Hold
from services.ledger.store import holds
from services.ledger.transferring import amount_in, check_counterparts
from services.ledger.writer import Writer
from services.runtime.caller import Caller, CallerKind
from services.runtime.database import Database
from services.runtime.errors import (
    ServiceError,
    Violation,
    denied,
    failed_precondition,
    invalid,
    not_found,
)

_log = logging.getLogger(__name__)

#: A hold is meant for one run's working day, not for ever.
LIFETIME_MAX = timedelta(days=30)
_EXPIRIES_PER_SWEEP_MAX = 500
_SWEEP_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Sum:
    """An amount as a request carries it."""

    asset: str
    value: str


@dataclass(frozen=True, slots=True)
class Request:
    """What a request about a hold says; `hold_id` is empty for a placement."""

    request_id: str
    hold_id: str = ""
    account_id: str = ""
    run_id: str = ""
    epoch: int = 0
    amount: Sum | None = None
    unsettled: Sum | None = None
    expire_time: datetime | None = None
    credit_account_id: str = ""
    description: str = ""


class Holding:
    """What PlaceHold, TopUpHold, SettleHold and ReleaseHold do, and the expiry job."""

    def __init__(
        self,
        database: Database,
        directory: Directory,
        writer: Writer,
        clock: Callable[[], datetime],
        new_id: Callable[[], str],
    ) -> None:
        self._database = database
        self._directory = directory
        self._writer = writer
        self._clock = clock
        self._new_id = new_id

    async def place(self, caller: Caller, request: Request) -> Hold:
        """Set money aside, or take over the hold that the run has already."""
        account = await self._directory.need(caller.tenant_id, request.account_id)
        _check_may_hold(caller, account, request.run_id)
        if account.kind is not AccountKind.SPENDING:
            raise failed_precondition(
                "ACCOUNT_NOT_ALLOWED",
                "Only a SPENDING account can have holds.",
                metadata={"account_id": account.account_id},
            )
        self._check_lifetime(request)
        outcome = await self._submit(caller, request, HoldAction.PLACE, account, None)
        return outcome.hold

    async def top_up(self, caller: Caller, request: Request) -> Hold:
        """Set more aside, prolong, or say how much pending calls may still take."""
        self._check_lifetime(request)
        account = await self._account_of(caller, request)
        return (await self._submit(caller, request, HoldAction.TOP_UP, account, None)).hold

    async def release(self, caller: Caller, request: Request) -> Hold:
        """Give back what is above the unsettled sum; all of it ends the hold."""
        account = await self._account_of(caller, request)
        return (await self._submit(caller, request, HoldAction.RELEASE, account, None)).hold

    async def settle(self, caller: Caller, request: Request) -> HoldOutcome:
        """Pay from a hold without a run."""
        account = await self._account_of(caller, request)
        credit = await self._directory.need(caller.tenant_id, request.credit_account_id)
        if credit.account_id == account.account_id:
            raise invalid(Violation("credit_account_id", "must be another account"))
        check_counterparts(account, credit)
        return await self._submit(caller, request, HoldAction.SETTLE, account, credit)

    async def release_run(self, tenant_id: str, run_id: str, version: int) -> None:
        """Give back the hold of a run that was closed, if it has one. Idempotent per version."""
        async with self._database.raw_tenant(tenant_id) as tx:
            hold = await holds.read(tx, tenant_id, run_id)
        if hold is None or not hold.is_open:
            return
        account = await self._directory.need(tenant_id, hold.account_id)
        key = request_key(tenant_id, "CloseRun", f"{run_id}/{version}/{hold.epoch}")
        await self._writer.submit(
            [
                HoldCommand(
                    key,
                    fingerprint({"run": run_id}),
                    HoldAction.RELEASE,
                    run_id,
                    account,
                    epoch=hold.epoch,
                )
            ]
        )

    async def expire_forever(self) -> None:
        """Give back holds whose time is over, sweep after sweep, until cancelled."""
        while True:
            if await self.expire_due() < _EXPIRIES_PER_SWEEP_MAX:
                await asyncio.sleep(_SWEEP_SECONDS)

    async def expire_due(self) -> int:
        """Give back the holds whose time is over now; return how many there were."""
        async with self._database.raw_jobs() as tx:
            due = await holds.due(tx, _EXPIRIES_PER_SWEEP_MAX)
        commands = [await self._expiry(hold) for hold in due]
        await self._writer.submit(commands)
        return len(commands)

    async def _expiry(self, hold: Hold) -> HoldCommand:
        # A key of its own each time: a hold that was revived expires again, and one that another
        # process expired meanwhile is left as it is.
        moment = format_time(hold.expire_time)
        return HoldCommand(
            request_key(hold.tenant_id, "ExpireHold", f"{hold.hold_id}/{moment}/{self._new_id()}"),
            fingerprint({"expire_time": moment}),
            HoldAction.EXPIRE,
            hold.hold_id,
            await self._directory.need(hold.tenant_id, hold.account_id),
            expire_time=hold.expire_time,
        )

    async def _account_of(self, caller: Caller, request: Request) -> Account:
        async with self._database.raw_tenant(caller.tenant_id) as tx:
            hold = await holds.read(tx, caller.tenant_id, request.hold_id)
        if hold is None:
            raise not_found("hold", request.hold_id)
        account = await self._directory.need(caller.tenant_id, hold.account_id)
        _check_may_hold(caller, account, hold.run_id)
        return account

    async def _submit(
        self,
        caller: Caller,
        request: Request,
        action: HoldAction,
        account: Account,
        credit: Account | None,
    ) -> HoldOutcome:
        key = request_key(caller.tenant_id, f"{action}_HOLD", request.request_id)
        amount, unsettled = request.amount, request.unsettled
        command = HoldCommand(
            key,
            _content_hash(request),
            action,
            request.hold_id or request.run_id or self._new_id(),
            account,
            amount_in(account, amount.asset, amount.value) if amount else 0,
            request.run_id,
            caller.run.epoch if caller.run else request.epoch,
            request.expire_time,
            amount_in(account, unsettled.asset, unsettled.value, "unsettled")
            if unsettled
            else None,
            credit,
            request.description,
        )
        (outcome,) = await self._writer.submit([command])
        if isinstance(outcome, ServiceError):
            raise outcome
        assert isinstance(outcome, HoldOutcome)
        return outcome

    def _check_lifetime(self, request: Request) -> None:
        if request.expire_time is None:
            return
        now = self._clock()
        if not now < request.expire_time <= now + LIFETIME_MAX:
            days = LIFETIME_MAX.days
            raise invalid(Violation("expire_time", f"must be in the next {days} days"))


def _check_may_hold(caller: Caller, account: Account, run_id: str) -> None:
    """Raise unless the caller may act on a hold of this account and run."""
    match caller.kind:
        case CallerKind.RUN:
            claims = caller.run
            assert claims is not None
            if (run_id, account.account_id) != (claims.run_id, claims.account_id):
                raise denied(
                    "CALLER_NOT_ALLOWED",
                    "A run token acts on its own run's hold, on the account its grant names.",
                )
        case CallerKind.SERVICE:
            if not run_id:
                raise denied("CALLER_NOT_ALLOWED", "A service acts on holds of runs alone.")
        case CallerKind.USER:
            if run_id:
                raise denied("CALLER_NOT_ALLOWED", "Only the run itself acts on its hold.")
            check_may_move(account, caller.owner, caller.scopes)


def _content_hash(request: Request) -> bytes:
    return fingerprint(
        {
            "hold": request.hold_id,
            "account": request.account_id,
            "run": request.run_id,
            "amount": _text(request.amount),
            "unsettled": _text(request.unsettled),
            "expire_time": format_time(request.expire_time) if request.expire_time else "",
            "credit": request.credit_account_id,
            "description": request.description,
        }
    )


def _text(amount: Sum | None) -> str:
    return f"{amount.value} {amount.asset}" if amount else ""
