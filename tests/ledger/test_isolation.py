"""What another tenant has can't be told from what nobody has: not by the answer, its error or the
work behind it.

Time itself is not measured. Instead every statement of both answers is compared, with the number
of rows it found: equal work takes equal time.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import grpc
import pytest

from cogni.ledger.v1 import budget_pb2, price_card_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.checkpoint import LogSigner
from services.ledger.composition import compose
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from tests.ledger.conftest import ORIGIN, Ledger, record, unit, usd
from tests.ledger.test_holds import placing, soon
from tests.plugins.identities import Identities
from tests.plugins.serving import ServeService

_TRACE_ID = re.compile("[0-9a-f]{32}")

#: Statements and how many rows each gave.
Work = list[tuple[str, int]]


class _Watched:
    """A connection that notes what it is asked."""

    def __init__(self, connection: Any, work: Work) -> None:
        self._connection, self._work = connection, work

    def __getattr__(self, name: str) -> Any:
        async def noted(*arguments: Any) -> Any:
            result = await getattr(self._connection, name)(*arguments)
            if arguments:
                self._work.append((arguments[0], _rows(name, result)))
            return result

        return noted


def _rows(name: str, result: Any) -> int:
    if name == "fetch":
        return len(result)
    # An execute answers "INSERT 0 5": how many rows it touched.
    return 0 if result is None else len(str(result)) if name == "execute" else 1


@dataclass
class WatchedDatabase:
    """A database that notes what is done for one tenant."""

    database: Database
    tenant_id: str
    work: Work = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.database, name)

    @asynccontextmanager
    async def raw_tenant(self, *tenant_ids: str) -> AsyncIterator[Any]:
        async with self.database.raw_tenant(*tenant_ids) as connection:
            is_theirs = tenant_ids == (self.tenant_id,)
            yield _Watched(connection, self.work) if is_theirs else connection

    def lane(self) -> Any:
        """A hot loop's connection: its statements are transactions of their own."""
        return _Watched(self.database.lane(), self.work)


@pytest.fixture
async def watched(
    ledger: Ledger, serve_service: ServeService, identities: Identities
) -> tuple[Ledger, Work]:
    """A second Ledger on the same database, where tenant "curious" is watched."""
    database = WatchedDatabase(ledger.database, "curious")
    signer, drain = LogSigner(identities.keys["ledger"], ORIGIN), Drain()
    application = compose(database, drain=drain, signer=signer)  # type: ignore[arg-type]
    # Sweeps would do work of their own in between.
    loops = {name: application.loops[name] for name in ("writer", "listener")}
    served = await serve_service("ledger", replace(application, loops=loops), drain=drain)
    return Ledger(served, identities, ledger.database), database.work


async def answered(call: Any, hidden: str) -> str:
    """What a caller learns: the whole answer, or the whole error, without the id it asked for."""
    try:
        if hasattr(call, "__aiter__"):
            said = "".join([str(part) async for part in call])
        else:
            said = str(await call)
    except grpc.aio.AioRpcError as error:
        details = dict(error.trailing_metadata() or ()).get("grpc-status-details-bin", b"")
        said = f"{error.code()} {error.details()} {details!r}"
    return _TRACE_ID.sub("TRACE", said.replace(hidden, "ID"))


Probe = Callable[[str], Awaitable[Any]]


async def test_another_tenants_things_look_like_things_that_are_not_there(
    ledger: Ledger, watched: tuple[Ledger, Work]
) -> None:
    run_id = new_id()
    account_id = await ledger.account("10")
    sent = unit(account_id, run_id=run_id)
    await record(ledger.executor(), sent)
    hold_id = (await ledger.stub().PlaceHold(placing(account_id, "1"))).hold.hold_id
    await ledger.stub().SetBudget(
        pb.SetBudgetRequest(request_id=new_id(), budget=a_budget(account_id))
    )
    card = price_card_pb2.PriceCard(asset="USD", markup="1")
    made = await ledger.stub().CreatePriceCard(
        pb.CreatePriceCardRequest(request_id=new_id(), price_card=card)
    )
    theirs, work = watched
    # What this process remembers of the other tenant must not show either.
    await record(theirs.executor(), sent, unit(account_id, run_id=run_id))
    mine = await theirs.account("10", tenant="curious")
    stub, executor = theirs.stub("curious"), theirs.executor("curious")
    # The first unit of a tenant looks for its own price cards.
    await record(executor, unit(mine))

    def moving(debit: str, credit: str) -> pb.TransferRequest:
        return pb.TransferRequest(
            request_id=new_id(), debit_account_id=debit, credit_account_id=credit, amount=usd("1")
        )

    moment = sent.occur_time
    probes: dict[str, tuple[str, Callable[[str], Any]]] = {
        "GetAccount": (
            account_id,
            lambda each: stub.GetAccount(pb.GetAccountRequest(account_id=each)),
        ),
        "debit": (account_id, lambda each: stub.Transfer(moving(each, mine))),
        "credit": (account_id, lambda each: stub.Transfer(moving(mine, each))),
        "GetStatement": (
            account_id,
            lambda each: stub.GetStatement(
                pb.GetStatementRequest(account_id=each, start_time=moment, end_time=soon())
            ),
        ),
        "ListEntries": (
            account_id,
            lambda each: stub.ListEntries(pb.ListEntriesRequest(account_id=each)),
        ),
        "PlaceHold": (account_id, lambda each: stub.PlaceHold(placing(each, "1"))),
        "SetBudget": (
            account_id,
            lambda each: stub.SetBudget(
                pb.SetBudgetRequest(request_id=new_id(), budget=a_budget(each))
            ),
        ),
        "GetBudget": (
            account_id,
            lambda each: stub.GetBudget(pb.GetBudgetRequest(account_id=each)),
        ),
        "TopUpHold": (
            hold_id,
            lambda each: stub.TopUpHold(
                pb.TopUpHoldRequest(request_id=new_id(), hold_id=each, amount=usd("1"))
            ),
        ),
        "SettleHold": (
            hold_id,
            lambda each: stub.SettleHold(
                pb.SettleHoldRequest(
                    request_id=new_id(), hold_id=each, credit_account_id=mine, amount=usd("1")
                )
            ),
        ),
        "ReleaseHold": (
            hold_id,
            lambda each: stub.ReleaseHold(pb.ReleaseHoldRequest(request_id=new_id(), hold_id=each)),
        ),
        "GetPriceCard": (
            made.price_card.price_card_id,
            lambda each: stub.GetPriceCard(pb.GetPriceCardRequest(price_card_id=each)),
        ),
        "GetReceipt": (
            sent.source_reference,
            lambda each: stub.GetReceipt(
                pb.GetReceiptRequest(source_system="executor", source_reference=each)
            ),
        ),
        "GetRunStatement": (
            run_id,
            lambda each: stub.GetRunStatement(pb.GetRunStatementRequest(run_id=each)),
        ),
        "ReconcileUsage": (
            run_id,
            lambda each: stub.ReconcileUsage(pb.ReconcileUsageRequest(source=1, run_id=each)),
        ),
        "RecordUsage account": (account_id, lambda each: learnt(executor, unit(each))),
        "RecordUsage correction": (
            sent.source_reference,
            lambda each: learnt(executor, unit(mine, corrects_source_reference=each)),
        ),
        # EXISTS, CONFLICT and the time of either would tell that the unit was recorded.
        "RecordUsage key": (
            sent.source_reference,
            lambda each: learnt(executor, unit(mine, source_reference=each)),
        ),
    }

    async def seen(probe: Callable[[str], Any], identity: str) -> tuple[str, Work]:
        del work[:]
        said = await answered(probe(identity), identity)
        return said, list(work)

    for name, (real, probe) in probes.items():
        # What a process remembers of the first look must not tell either.
        for _ in range(2):
            made_up = await seen(probe, new_id())
            hidden = await seen(probe, real)
            assert made_up[1], f"nobody watches what {name} does"
            assert "INTERNAL" not in hidden[0], name
            assert hidden[0] == made_up[0], name
            assert hidden[1] == made_up[1], name
            if name == "RecordUsage key":
                # By now it is recorded: as one's own.
                break


def a_budget(account_id: str) -> budget_pb2.Budget:
    return budget_pb2.Budget(account_id=account_id, period=1, limit=usd("5"))  # type: ignore[arg-type]


async def learnt(executor: Any, used: Any) -> str:
    """What RecordUsage says of a unit, without what every charge has of its own."""
    (outcome,) = await record(executor, used)
    return f"{outcome.result} {outcome.violations}"
