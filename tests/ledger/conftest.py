"""A real Ledger server on a database of the test's own, and people who call it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest

from cogni.ledger.v1 import account_pb2, ledger_service_pb2_grpc, usage_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.type.v1.amount_pb2 import Amount
from services.ledger.accounts import Account, AccountKind
from services.ledger.assets import asset_of
from services.ledger.checkpoint import LogSigner
from services.ledger.commands import UsageCommand
from services.ledger.composition import compose
from services.ledger.units import Cost, Key, ToolUsage, UsageUnit
from services.ledger.writer import Writer
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.runtime.pools import DatabaseLimits
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService

ORIGIN = "ledger.example.org"
_PAST = datetime(2020, 1, 1, tzinfo=UTC)
ALL_SCOPES = ("ledger:read", "ledger:write", "ledger:admin")


def usd(value: str) -> Amount:
    """An amount of US dollars."""
    return Amount(asset="USD", value=value)


@dataclass
class Ledger:
    """One running Ledger and its callers."""

    served: Served
    identities: Identities
    database: Database
    stubs: dict[tuple[str, ...], Any] = field(default_factory=dict)

    def stub(
        self, tenant: str = "acme", subject: str = "alice", scopes: tuple[str, ...] = ALL_SCOPES
    ) -> Any:
        """The stub of a person."""
        token = self.identities.user_token(tenant, subject, scopes)
        return self._stub((tenant, subject, *scopes), token)

    def executor(self, tenant: str = "acme") -> Any:
        """The stub of the Executor's server."""
        token = self.identities.service_token("executor", "ledger", tenant)
        return self._stub(("executor", tenant), token)

    def run(self, **claims: Any) -> Any:
        """The stub of one attempt of a run."""
        token = self.identities.run_token(self.identities.run_claims(**claims))
        return self._stub((), token)

    def _stub(self, key: tuple[str, ...], token: str) -> Any:
        if not key or key not in self.stubs:
            stub = ledger_service_pb2_grpc.LedgerServiceStub(self.served.channel(token))
            self.stubs[key] = stub
        return self.stubs[key]

    async def account(
        self,
        funds: str = "0",
        *,
        tenant: str = "acme",
        credit_limit: str = "0",
        asset: str = "USD",
        kind: int = account_pb2.ACCOUNT_KIND_SPENDING,
    ) -> str:
        """Create an account with that much money in it; return its id."""
        stub = self.stub(tenant)
        created = await stub.CreateAccount(
            pb.CreateAccountRequest(
                request_id=new_id(),
                display_name="an account",
                asset=asset,
                kind=kind,
                credit_limit=Amount(asset=asset, value=credit_limit),
            )
        )
        account_id: str = created.account.account_id
        if funds != "0":
            source = await self.account(
                tenant=tenant, asset=asset, kind=account_pb2.ACCOUNT_KIND_FUNDING
            )
            await stub.Transfer(
                pb.TransferRequest(
                    request_id=new_id(),
                    debit_account_id=source,
                    credit_account_id=account_id,
                    amount=Amount(asset=asset, value=funds),
                )
            )
        return account_id

    async def balance(self, account_id: str, tenant: str = "acme") -> account_pb2.Balance:
        """What an account has now."""
        answer = await self.stub(tenant).GetAccount(pb.GetAccountRequest(account_id=account_id))
        return answer.account.balance


def unit(account_id: str, cost: str | None = "0.01", **changes: Any) -> usage_pb2.UsageUnit:
    """A model call of a run; keyword arguments replace fields."""
    values: dict[str, Any] = {
        "source_system": "executor",
        "source_reference": new_id(),
        "run_id": new_id(),
        "attempt": 1,
        "account_id": account_id,
        "llm_call": usage_pb2.LlmCall(
            model="gpt-5-mini",
            provider="openai",
            token_counts=[
                usage_pb2.TokenCount(kind=usage_pb2.TOKEN_KIND_INPUT, count=1000),
                usage_pb2.TokenCount(kind=usage_pb2.TOKEN_KIND_OUTPUT, count=200),
            ],
        ),
        **changes,
    }
    if cost is not None:
        values["cost"] = usd(cost)
    message = usage_pb2.UsageUnit(**values)
    if not message.HasField("occur_time"):
        message.occur_time.FromDatetime(datetime.now(UTC))
    return message


async def record(stub: Any, *units: usage_pb2.UsageUnit) -> list[usage_pb2.UsageOutcome]:
    """Record units and return their outcomes."""
    answer = await stub.RecordUsage(pb.RecordUsageRequest(units=units))
    return list(answer.outcomes)


def one_command(account: Account | None = None) -> UsageCommand:
    """A tool call for 0.5 USD."""
    of = account or Account(
        "acme", new_id(), "", asset_of("USD"), AccountKind.SPENDING, "", 0, _PAST
    )
    key = Key(of.tenant_id, "executor", new_id())
    used = UsageUnit(key, of.account_id, ToolUsage("t"), _PAST, cost=Cost("USD", "0.5"))
    return UsageCommand(key, used.payload_hash(), used, of)


@asynccontextmanager
async def running(writer: Writer) -> AsyncIterator[Writer]:
    """The writer at work, and stopped afterwards."""
    task = asyncio.create_task(writer.run())
    try:
        yield writer
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


StartLedger = Callable[[], Awaitable[Ledger]]


@pytest.fixture
async def start_ledger(
    database: Any, serve_service: ServeService, identities: Identities
) -> AsyncIterator[StartLedger]:
    """`await start_ledger()` gives a further server on the test's one database."""
    shared: list[Database] = []

    async def start() -> Ledger:
        if not shared:
            limits = DatabaseLimits(raw_connections_max=8)
            shared.append(await database("ledger", limits=limits))
        drain = Drain()
        signer = LogSigner(identities.keys["ledger"], ORIGIN)
        application = compose(shared[0], drain=drain, signer=signer)
        served = await serve_service("ledger", application, drain=drain)
        return Ledger(served, identities, shared[0])

    return start


@pytest.fixture
async def ledger(start_ledger: StartLedger) -> Ledger:
    """A running Ledger on an empty database."""
    return await start_ledger()
