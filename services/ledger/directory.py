"""Knows the accounts: creates them, finds them, and remembers what never changes about them."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from services.ledger.accounts import (
    SYSTEM_KINDS,
    Account,
    AccountKind,
    Balance,
    check_may_create,
    system_account_id,
)
from services.ledger.assets import Asset
from services.ledger.canonical import fingerprint
from services.ledger.commands import request_key
from services.ledger.store import accounts, entries, keys, log
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import not_found, reused_request_id

#: Accounts remembered per process; an account is a few hundred bytes.
_REMEMBERED_MAX = 50_000
_TICK = timedelta(microseconds=1)
_LATEST = datetime.max.replace(tzinfo=UTC) - _TICK
_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class NewAccount:
    """What a caller asks for; `credit_limit` in minor units, an empty owner is the caller."""

    request_id: str
    display_name: str
    asset: Asset
    kind: AccountKind
    owner: str
    credit_limit: int

    def content_hash(self) -> bytes:
        """Return the hash by which a repeat of the request is told from another one."""
        return fingerprint(
            {
                "display_name": self.display_name,
                "asset": self.asset.code,
                "kind": self.kind.name,
                "owner": self.owner,
                "credit_limit": str(self.credit_limit),
            }
        )


class Directory:
    """The tenant's accounts. Safe to share: an account's own attributes never change."""

    def __init__(self, database: Database, new_id: Callable[[], str]) -> None:
        self._database = database
        self._new_id = new_id
        self._remembered: OrderedDict[tuple[str, str], Account] = OrderedDict()

    async def create(self, caller: Caller, wanted: NewAccount) -> tuple[Account, Balance]:
        """Create an account, or return the one an earlier identical request created.

        The first account of an asset brings the tenant's own accounts of it along.
        """
        owner = wanted.owner or caller.owner
        check_may_create(wanted.kind, wanted.credit_limit, owner, caller.owner, caller.scopes)
        tenant_id, account_id = caller.tenant_id, self._new_id()
        key = request_key(tenant_id, "CreateAccount", wanted.request_id)
        account = Account(
            tenant_id,
            account_id,
            wanted.display_name,
            wanted.asset,
            wanted.kind,
            owner,
            wanted.credit_limit,
            _EPOCH,
        )
        async with self._database.raw_tenant(tenant_id) as tx:
            content_hash = wanted.content_hash()
            used = await keys.claim(tx, key, content_hash, account_id)
            if used is None:
                await accounts.insert(tx, tenant_id, [account, *_system_accounts(account)])
            elif used.payload_hash != content_hash:
                raise reused_request_id(wanted.request_id)
            created = await accounts.read(tx, tenant_id, (used and used.subject_id) or account_id)
        assert created is not None, "a key names the account it was claimed for"
        return created

    async def read(
        self, tenant_id: str, account_id: str, moment: datetime | None
    ) -> tuple[Account, Balance]:
        """Return an account with its balance, now or at a moment; raises NOT_FOUND."""
        async with self._database.raw_tenant(tenant_id) as tx:
            found = await accounts.read(tx, tenant_id, account_id)
            if found is None:
                raise not_found("account", account_id)
            if moment is None:
                return found
            size, _ = await log.read_head(tx, tenant_id)
            # What was recorded at that very moment counts: a microsecond is the finest time kept.
            last = await entries.last_before(tx, tenant_id, size, min(moment, _LATEST) + _TICK)
            return found[0], await accounts.balance_at(tx, found[0], last)

    async def list_page(
        self,
        tenant_id: str,
        *,
        asset: str,
        kind: int,
        owner: str,
        after: tuple[datetime, str] | None,
        limit: int,
    ) -> list[tuple[Account, Balance]]:
        """Return up to `limit` accounts after the given one, the oldest first."""
        async with self._database.raw_tenant(tenant_id) as tx:
            return await accounts.list_page(
                tx, tenant_id, asset=asset, kind=kind, owner=owner, after=after, limit=limit
            )

    async def find(self, tenant_id: str, account_ids: Collection[str]) -> dict[str, Account]:
        """Return those of the tenant's accounts that exist, from memory where it can."""
        found: dict[str, Account] = {}
        missing: set[str] = set()
        for account_id in account_ids:
            account = self._remembered.get((tenant_id, account_id))
            if account is None:
                missing.add(account_id)
            else:
                found[account_id] = account
        if missing:
            async with self._database.raw_tenant(tenant_id) as tx:
                for account in await accounts.find(tx, tenant_id, missing):
                    found[account.account_id] = account
                    self._remember(account)
        return found

    async def need(self, tenant_id: str, account_id: str) -> Account:
        """Return one account; raises NOT_FOUND."""
        account = (await self.find(tenant_id, [account_id])).get(account_id)
        if account is None:
            raise not_found("account", account_id)
        return account

    def _remember(self, account: Account) -> None:
        self._remembered[account.tenant_id, account.account_id] = account
        if len(self._remembered) > _REMEMBERED_MAX:
            self._remembered.popitem(last=False)


def _system_accounts(first: Account) -> list[Account]:
    return [
        Account(
            first.tenant_id,
            system_account_id(first.tenant_id, first.asset.code, kind),
            f"{first.asset.code} {kind.name.lower()}",
            first.asset,
            kind,
            "",
            0,
            _EPOCH,
        )
        for kind in SYSTEM_KINDS
    ]
