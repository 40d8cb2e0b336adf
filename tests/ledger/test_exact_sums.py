"""Sums of more digits than Python adds by itself without rounding."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

from cogni.client.ledger_verify import verify_export
from cogni.ledger.v1 import account_pb2, price_card_pb2, reconciliation_pb2
from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.accounts import AccountKind, system_account_id
from services.runtime.ids import new_id
from tests.ledger.conftest import Ledger, record, unit, usd

ATOM = "0." + "0" * 29 + "1"
HUGE = "9" * 26


async def test_what_rounding_leaves_over_is_carried_to_the_last_digit(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    card = price_card_pb2.PriceCard(asset="USD", markup=f"1.{ATOM[2:]}")
    await ledger.stub().CreatePriceCard(
        pb.CreatePriceCardRequest(request_id=new_id(), price_card=card)
    )
    costs = ("0.000000000000" + "3" * 18, "0.000000000000" + "1" * 18, ATOM)

    await record(ledger.executor(), *(unit(account_id, cost) for cost in costs[:2]))
    await record(ledger.executor(), unit(account_id, costs[2]))

    exact = sum(Fraction(cost) for cost in costs) * Fraction(card.markup) * 10**12
    rounding = system_account_id("acme", "USD", AccountKind.ROUNDING)
    async with ledger.database.raw_tenant("acme") as tx:
        query = "SELECT carried FROM balances WHERE account_id = $1"
        carried: Decimal = await tx.fetchval(query, rounding)
    assert Fraction(carried) == exact


async def test_totals_of_a_reconciliation_keep_every_digit(ledger: Ledger) -> None:
    rows = [
        reconciliation_pb2.ExternalCost(source_reference=str(number), cost=usd(cost))
        for number, cost in enumerate(("1" + "0" * 30, ATOM))
    ]

    answer = await ledger.stub().ReconcileUsage(
        pb.ReconcileUsageRequest(source=1, run_id=new_id(), rows=rows)
    )

    assert answer.external_totals[0].value == "1" + "0" * 30 + ATOM[1:]


async def test_balances_of_50_digits_are_kept_and_verified_offline(ledger: Ledger) -> None:
    funding = await ledger.account(kind=account_pb2.ACCOUNT_KIND_FUNDING)

    await record(ledger.executor(), *(unit(funding, HUGE) for _ in range(12)))
    await record(ledger.executor(), unit(funding, "0.000000000001"))

    assert (await ledger.balance(funding)).balance.value == f"-{12 * int(HUGE)}.000000000001"
    data = b""
    async for part in ledger.stub().ExportEntries(pb.ExportEntriesRequest()):
        data += part.chunk
    verified = verify_export(data.splitlines(True))
    assert str(verified.totals["USD"]) == f"{12 * int(HUGE)}.000000000001"
