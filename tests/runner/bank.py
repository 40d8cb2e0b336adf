"""A real Ledger with one account, and what a runner sets money aside there with."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from decimal import Decimal
from typing import cast

from services.executor.runner.holds import LedgerHolds
from services.executor.runner.journal import Holding
from services.executor.runner.tokens import RunTokens
from services.ledger.checkpoint import LogSigner
from services.ledger.composition import compose
from services.ledger.holds import Hold
from services.ledger.store import holds
from services.runtime.channels import sync_service_channel
from services.runtime.drain import Drain
from services.runtime.pools import DatabaseLimits
from tests.databases import DatabaseFactory
from tests.ledger.conftest import ORIGIN, Ledger
from tests.plugins.identities import Identities
from tests.plugins.serving import ServeService
from tests.runner.fleet import TENANT

FUNDS = Decimal(10)


@dataclass
class MintedTokens:
    """Stands for the Executor's server, which mints for whoever holds the lease."""

    identities: Identities
    account_id: str

    async def token(self, holding: Holding) -> str:
        claims = self.identities.run_claims(
            holding.tenant_id,
            run_id=holding.run_id,
            epoch=holding.epoch,
            account_id=self.account_id,
        )
        return self.identities.run_token(claims)


@dataclass
class Bank:
    """A Ledger, one account in it, and what sets money aside there."""

    ledger: Ledger
    holds: LedgerHolds
    tokens: MintedTokens
    account_id: str

    async def held(self) -> Decimal:
        return Decimal((await self.ledger.balance(self.account_id, TENANT)).held.value)

    async def available(self) -> Decimal:
        return Decimal((await self.ledger.balance(self.account_id, TENANT)).available.value)

    async def hold_of(self, run_id: str) -> Hold | None:
        async with self.ledger.database.raw_tenant(TENANT) as tx:
            return await holds.read(tx, TENANT, run_id)


@asynccontextmanager
async def opened_bank(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> AsyncIterator[Bank]:
    """A Ledger's server on a database of its own, and ten dollars."""
    drain, limits = Drain(), DatabaseLimits(raw_connections_max=8)
    storage = await database("ledger", limits=limits)
    application = compose(storage, drain=drain, signer=LogSigner(identities.keys["ledger"], ORIGIN))
    ledger = Ledger(await serve_service("ledger", application, drain=drain), identities, storage)
    tokens = MintedTokens(identities, await ledger.account(str(FUNDS), tenant=TENANT))
    channel = sync_service_channel(
        ledger.served.address, "ledger", identities.service_tokens("runner")
    )
    holds_there = LedgerHolds(lambda: channel, cast(RunTokens, tokens))
    yield Bank(ledger, holds_there, tokens, tokens.account_id)
    holds_there.close()
    channel.close()
