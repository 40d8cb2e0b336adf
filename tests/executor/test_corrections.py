"""A call that was settled from its estimate is corrected once when its actual figures arrive."""

from __future__ import annotations

import asyncio
import json
from datetime import timedelta
from decimal import Decimal
from typing import Any

from cogni.executor.v1 import executor_service_pb2 as pb
from services.executor.amounts import Amount
from services.executor.convert.usage import unit_to_proto
from services.executor.store import usage
from services.executor.store.journal import Write
from services.executor.store.usage import Tokens
from services.executor.usage import units_digest
from services.executor.use_cases.deliver_usage import STALE_SECONDS, UsageDelivery
from services.runtime.ids import new_id
from tests.databases import Clock
from tests.executor.conftest import LEASE, Attempt, RecordingLedger, World

_WAITS_FOR_LOCK = """
SELECT EXISTS (SELECT 1 FROM pg_locks WHERE NOT granted AND locktype = 'transactionid'
    AND transactionid = pg_current_xact_id()::xid)
"""


async def test_an_actual_after_an_estimate_is_sent_as_its_correction_and_closes_the_run_again(
    quiet_world: World, clock: Clock
) -> None:
    attempt = await _attempt(quiet_world)
    call_id = await _lost(quiet_world, clock, attempt)
    ledger = RecordingLedger()
    delivery = UsageDelivery(quiet_world.database, ledger)
    await delivery.deliver()
    await delivery.close()

    for _ in range(2):
        await _write(quiet_world, _actual(call_id))
    await delivery.deliver()
    await delivery.close()
    await delivery.close()

    estimate, correction = ledger.units
    assert (estimate.call_id, estimate.estimated) == (call_id, True)
    assert (correction.corrects, correction.estimated) == (call_id, False)
    assert correction.cost == Amount("USD", Decimal("0.002"))
    message = unit_to_proto(correction)
    assert message.corrects_source_reference == call_id
    assert message.occur_time == unit_to_proto(estimate).occur_time
    assert [each.digest for each in ledger.closings] == [
        units_digest([call_id]),
        units_digest([call_id, correction.call_id]),
    ]
    seen = (await quiet_world.executor().GetRun(pb.GetRunRequest(run_id=attempt.run_id))).run
    assert [each.value for each in seen.usage.costs] == ["0.002"]
    assert (seen.usage.model_calls, seen.usage.estimated) == (1, False)


async def test_a_correction_waits_until_the_ledger_has_what_it_corrects(
    quiet_world: World, clock: Clock
) -> None:
    attempt = await _attempt(quiet_world)
    call_id = await _lost(quiet_world, clock, attempt)
    await _write(quiet_world, _actual(call_id))
    ledger = RecordingLedger()
    delivery = UsageDelivery(quiet_world.database, ledger)

    await delivery.deliver()
    await delivery.close()
    first = [each.call_id for each in ledger.units]
    await delivery.deliver()

    assert first == [call_id]
    assert not ledger.closings
    assert [each.corrects for each in ledger.units] == ["", call_id]


async def test_an_actual_that_meets_the_estimate_being_written_is_not_lost(
    quiet_world: World, clock: Clock
) -> None:
    attempt = await _attempt(quiet_world)
    call_id = await _pending(attempt)
    assert await attempt.succeed()
    await clock.advance(quiet_world.database, timedelta(seconds=STALE_SECONDS + 1))
    async with quiet_world.database.raw_jobs() as tx:
        assert await usage.settle_stale(tx, STALE_SECONDS, 10) == 1
        writing = asyncio.create_task(_write(quiet_world, _actual(call_id)))
        await _until_somebody_waits(tx)
    await writing

    ledger = RecordingLedger()
    delivery = UsageDelivery(quiet_world.database, ledger)
    await delivery.deliver()
    await delivery.deliver()
    assert [each.corrects for each in ledger.units] == ["", call_id]


async def test_a_correction_that_meets_the_runs_close_keeps_it_open(
    quiet_world: World, clock: Clock
) -> None:
    attempt = await _attempt(quiet_world)
    call_id = await _lost(quiet_world, clock, attempt)
    ledger = RecordingLedger()
    delivery = UsageDelivery(quiet_world.database, ledger)
    await delivery.deliver()
    async with quiet_world.database.raw_jobs() as tx:
        write = _actual(call_id)
        await tx.execute(write.statement, *write.arguments)
        closing = asyncio.create_task(delivery.close())
        await _until_somebody_waits(tx)
    await closing
    await delivery.deliver()

    await delivery.close()

    assert [len(each.call_ids) for each in ledger.closings] == [1, 2]


async def test_an_actual_that_comes_in_time_corrects_nothing(
    quiet_world: World, clock: Clock
) -> None:
    attempt = await _attempt(quiet_world)
    call_id = await _pending(attempt)
    await _write(quiet_world, _actual(call_id))
    assert await attempt.succeed()
    await clock.advance(quiet_world.database, LEASE + timedelta(seconds=STALE_SECONDS + 1))
    ledger = RecordingLedger()
    delivery = UsageDelivery(quiet_world.database, ledger)

    await delivery.settle_lost()
    await _write(quiet_world, _actual(call_id))
    await delivery.deliver()

    [unit] = ledger.units
    assert (unit.estimated, unit.corrects) == (False, "")


async def _attempt(world: World) -> Attempt:
    return await world.claim((await world.start(await world.grant())).run_id)


async def _pending(attempt: Attempt) -> str:
    call_id = new_id()
    estimate = {"input_tokens": 9, "output_tokens": 9, "cost": {"asset": "USD", "value": "0.5"}}
    async with attempt.database.raw_tenant(attempt.tenant_id) as tx:
        await tx.execute(
            "INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id,"
            " kind, node, model, provider, state, estimate, occur_time)"
            " SELECT $1, tenant_id, run_id, attempt, grant_id, 'account', 'LLM_CALL', 'node', 'm',"
            " 'p', 'PENDING', $3, cogni_now() FROM runs WHERE run_id = $2",
            call_id,
            attempt.run_id,
            json.dumps(estimate),
        )
    return call_id


async def _lost(world: World, clock: Clock, attempt: Attempt) -> str:
    """A call whose run has ended, and which was settled from its estimate."""
    call_id = await _pending(attempt)
    assert await attempt.succeed()
    await clock.advance(world.database, timedelta(seconds=STALE_SECONDS + 1))
    async with world.database.raw_jobs() as tx:
        assert await usage.settle_stale(tx, STALE_SECONDS, 10) == 1
    return call_id


def _actual(call_id: str) -> Write:
    """What a runner writes that was stopped, and had its answer all the same."""
    return usage.settle_call(
        call_id,
        Tokens(input_tokens=2, output_tokens=1),
        Amount("USD", Decimal("0.002")),
        estimated=False,
        provider_response_id="answer-1",
    )


async def _write(world: World, write: Write) -> None:
    async with world.database.raw_jobs() as tx:
        await tx.execute(write.statement, *write.arguments)


async def _until_somebody_waits(tx: Any) -> None:
    async with asyncio.timeout(60):
        while True:
            # A row is waited for by the transaction that has it: this one.
            if await tx.fetchval(_WAITS_FOR_LOCK):
                return
            await asyncio.sleep(0.01)
