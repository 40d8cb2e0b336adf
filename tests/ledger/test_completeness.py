"""Completeness: what the Executor committed, what arrived, and what others say it cost."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider

from cogni.ledger.v1 import ledger_service_pb2 as pb
from cogni.ledger.v1 import reconciliation_pb2, usage_pb2
from services.ledger.completeness import Completeness
from services.ledger.composition import compose
from services.runtime.drain import Drain
from services.runtime.ids import new_id
from services.runtime.telemetry import Telemetry
from tests.ledger.conftest import Ledger, record, unit, usd
from tests.ledger.test_holds import closing
from tests.plugins.calls import refused
from tests.plugins.serving import ServeService

MISSING = reconciliation_pb2.GAP_KIND_MISSING
EXTRA = reconciliation_pb2.GAP_KIND_EXTRA
DIFFERENT = reconciliation_pb2.GAP_KIND_DIFFERENT
UNCLOSED = reconciliation_pb2.GAP_KIND_UNCLOSED
OUTGROWN = 5000
INVOICE = reconciliation_pb2.EXTERNAL_SOURCE_INVOICE


async def gaps(ledger: Ledger, tenant: str = "acme") -> dict[str, int]:
    while await Completeness(ledger.database).check():
        pass
    answer = await ledger.stub(tenant).ListGaps(pb.ListGapsRequest())
    return {each.run_id: each.kind for each in answer.gaps}


async def test_each_kind_of_gap_is_found_and_forgotten_when_it_is_closed(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    missing, extra, different, fine = (new_id() for _ in range(4))
    units = {
        run_id: [unit(account_id, run_id=run_id) for _ in range(2)]
        for run_id in (missing, extra, different, fine)
    }
    executor = ledger.executor()
    await record(executor, units[missing][0], *units[extra], *units[different], *units[fine])
    await executor.CloseRun(closing(missing, units[missing]))
    await executor.CloseRun(closing(extra, units[extra][:1]))
    await executor.CloseRun(closing(different, [units[different][0], unit(account_id)]))
    await executor.CloseRun(closing(fine, units[fine]))

    assert await gaps(ledger) == {missing: MISSING, extra: EXTRA, different: DIFFERENT}
    await record(executor, units[missing][1])
    await executor.CloseRun(closing(extra, units[extra]))
    assert await gaps(ledger) == {different: DIFFERENT}
    assert await gaps(ledger, "other") == {}


async def test_a_unit_that_arrives_after_the_close_is_found_by_the_check(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    units = [unit(account_id, run_id=run_id) for _ in range(2)]
    await record(ledger.executor(), units[0])
    await ledger.executor().CloseRun(closing(run_id, units[:1]))

    await record(ledger.executor(), units[1])

    assert await gaps(ledger) == {run_id: EXTRA}


async def test_a_run_nobody_closed_is_a_gap_after_a_day(ledger: Ledger, clock: Any) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    await record(ledger.executor(), unit(account_id, run_id=run_id))

    assert await gaps(ledger) == {}
    await clock.advance(ledger.database, timedelta(days=1, seconds=1))
    assert await gaps(ledger) == {run_id: UNCLOSED}


async def test_processes_that_check_side_by_side_do_not_disturb_each_other(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("10")
    for _ in range(5):
        run_id = new_id()
        await record(ledger.executor(), unit(account_id, run_id=run_id))
        await ledger.executor().CloseRun(closing(run_id, []))

    await asyncio.gather(*(Completeness(ledger.database).check() for _ in range(4)))

    assert set((await gaps(ledger)).values()) == {EXTRA}


async def test_the_check_keeps_up_when_the_log_outgrows_the_plans_it_began_with(
    ledger: Ledger,
) -> None:
    account_id = await ledger.account("10")
    check = Completeness(ledger.database)
    for _ in range(7):
        # PostgreSQL keeps a plan after it was used some times: here, one for a log of few entries.
        await record(ledger.executor(), unit(account_id))
        await check.check()

    await record(ledger.executor(), *(unit(account_id) for _ in range(OUTGROWN)))

    # Each unit is a run of its own that nobody closed. The server's own check may be at it too.
    async with asyncio.timeout(60):
        while await counted(ledger) < 7 + OUTGROWN:
            await check.check()


async def counted(ledger: Ledger) -> int:
    async with ledger.database.raw_tenant("acme") as tx:
        found: int = await tx.fetchval("SELECT count(*) FROM gaps")
        return found


@dataclass
class Meters:
    """What an operator's collector would get."""

    telemetry: Telemetry
    reader: InMemoryMetricReader

    def of(self, name: str) -> dict[str, float]:
        data = self.reader.get_metrics_data()
        scopes = [scope for each in data.resource_metrics for scope in each.scope_metrics]  # type: ignore[union-attr]
        return {
            str((point.attributes or {}).get("kind", "")): point.value  # type: ignore[union-attr]
            for scope in scopes
            for metric in scope.metrics
            if metric.name == name
            for point in metric.data.data_points
        }


@pytest.fixture
def meters() -> Iterator[Meters]:
    reader = InMemoryMetricReader()
    provider = MeterProvider([reader])
    tracing = TracerProvider()
    meter = provider.get_meter("cogni")
    yield Meters(Telemetry(tracing.get_tracer("cogni"), meter, tracing, lambda: None), reader)
    provider.shutdown()


async def test_the_check_goes_on_by_itself_and_its_gaps_and_conflicts_are_metrics(
    ledger: Ledger, meters: Meters, serve_service: ServeService
) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    sent = unit(account_id, run_id=run_id)
    await record(ledger.executor(), sent)
    await ledger.executor().CloseRun(closing(run_id, [sent, unit(account_id)]))
    drain = Drain()
    application = compose(ledger.database, drain=drain, telemetry=meters.telemetry)
    served = await serve_service("ledger", application, drain=drain)
    metered = Ledger(served, ledger.identities, ledger.database)
    sent.cost.value = "7"
    await record(metered.executor(), sent)

    async with asyncio.timeout(60):
        while not meters.of("cogni.ledger.gaps")["MISSING"]:  # noqa: ASYNC110
            await asyncio.sleep(0.01)

    assert meters.of("cogni.ledger.gaps") == {
        "MISSING": 1,
        "EXTRA": 0,
        "DIFFERENT": 0,
        "UNCLOSED": 0,
    }
    assert meters.of("cogni.ledger.usage.conflicts") == {"": 1}


def call(response_id: str, **fields: Any) -> usage_pb2.LlmCall:
    return usage_pb2.LlmCall(
        model="m", provider="openai", provider_response_id=response_id, **fields
    )


def row(cost: str, **fields: str) -> reconciliation_pb2.ExternalCost:
    return reconciliation_pb2.ExternalCost(cost=usd(cost), **fields)


async def test_differences_are_listed_unit_by_unit(ledger: Ledger) -> None:
    account_id, run_id = await ledger.account("10"), new_id()
    agreed, cheaper, absent, twice = (
        unit(account_id, "0.5", run_id=run_id, llm_call=call(f"r{i}")) for i in range(4)
    )
    await record(ledger.executor(), agreed, cheaper, absent, twice)

    answer = await ledger.stub().ReconcileUsage(
        pb.ReconcileUsageRequest(
            source=INVOICE,
            run_id=run_id,
            rows=[
                row("0.5", provider_response_id="r0", external_reference="a"),
                row("0.6", source_reference=cheaper.source_reference, external_reference="b"),
                row("0.5", provider_response_id="r3", external_reference="c"),
                row("0.5", provider_response_id="r3", external_reference="d"),
                row("0.1", provider_response_id="unknown", external_reference="e"),
            ],
        )
    )

    found = {(each.kind, each.external_reference) for each in answer.differences}
    assert found == {
        (reconciliation_pb2.DIFFERENCE_KIND_COST, "b"),
        (reconciliation_pb2.DIFFERENCE_KIND_DUPLICATE_IN_SOURCE, "d"),
        (reconciliation_pb2.DIFFERENCE_KIND_NOT_IN_LEDGER, "e"),
        (reconciliation_pb2.DIFFERENCE_KIND_NOT_IN_SOURCE, ""),
    }
    assert answer.matched_count == 2
    assert answer.ledger_totals[0].value == "2"
    assert answer.external_totals[0].value == "2.2"


async def test_an_invoice_file_is_compared_over_a_period(ledger: Ledger) -> None:
    account_id = await ledger.account("10")
    sent = unit(account_id, "0.5", llm_call=call("r1"))
    await record(ledger.executor(), sent)
    start, end = Timestamp(), Timestamp()
    start.FromDatetime(datetime.now(UTC) - timedelta(hours=1))
    end.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    request = pb.ReconcileUsageRequest(
        source=INVOICE,
        start_time=start,
        end_time=end,
        csv=b"cost,asset,provider_response_id\r\n0.500001,USD,r1\r\n",
    )

    exact = await ledger.stub().ReconcileUsage(request)
    request.tolerance.CopyFrom(usd("0.00001"))
    near = await ledger.stub().ReconcileUsage(request)

    assert exact.differences[0].ledger_cost.value == "0.5"
    assert exact.differences[0].external_cost.value == "0.500001"
    assert (len(near.differences), near.matched_count) == (0, 1)


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"run_id": ""}, "run_id"),
        ({"source": 0}, "source"),
        ({"csv": b"a,b\r\n"}, "csv"),
        ({"csv": b"cost,asset\r\nx,USD\r\n"}, "csv"),
        ({"csv": b"\xff\xfe"}, "csv"),
        ({"csv": b"cost,asset\r\n", "rows": [row("1")]}, "csv"),
        ({"rows": [row("x")]}, "rows[0].cost.value"),
    ],
)
async def test_a_bad_reconciliation_is_refused_by_its_field(
    ledger: Ledger, changes: dict[str, Any], field: str
) -> None:
    values: dict[str, Any] = {"source": INVOICE, "run_id": new_id(), **changes}

    refusal = await refused(ledger.stub().ReconcileUsage(pb.ReconcileUsageRequest(**values)))

    assert refusal.reason == "INVALID_REQUEST"
    assert f"{field}:" in refusal.message
