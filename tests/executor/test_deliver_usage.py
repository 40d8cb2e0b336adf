"""Every settled unit reaches the Ledger, and a run is closed once all of its units have."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal

import pytest

from cogni.ledger.v1 import usage_pb2
from services.executor.adapters.ledger import Answer, Recording
from services.executor.amounts import Amount
from services.executor.convert.usage import unit_to_proto
from services.executor.store import usage
from services.executor.usage import Closing, units_digest
from services.executor.use_cases.deliver_usage import STALE_SECONDS, UsageDelivery
from services.runtime.errors import ErrorKind, PeerError
from services.runtime.ids import new_id
from tests.databases import Clock
from tests.executor.conftest import LEASE, Attempt, RecordingLedger, World

USED = {
    "input_tokens": 100,
    "output_tokens": 30,
    "cached_input_tokens": 40,
    "cache_write_tokens": 10,
    "reasoning_tokens": 5,
}


@pytest.fixture
def ledger() -> RecordingLedger:
    return RecordingLedger()


async def test_a_settled_unit_is_recorded_once_and_with_all_its_figures(
    quiet_world: World, ledger: RecordingLedger
) -> None:
    attempt = await _attempt(quiet_world)
    call_id = await _settled(attempt, cost="0.0042")
    delivery = UsageDelivery(quiet_world.database, ledger)

    assert await delivery.deliver() == 1
    assert await delivery.deliver() == 0

    [unit] = ledger.units
    assert (unit.call_id, unit.run_id, unit.attempt) == (call_id, attempt.run_id, 1)
    assert unit.cost == Amount("USD", Decimal("0.0042"))
    assert unit.disjoint_counts() == {
        "INPUT": 50,
        "OUTPUT": 25,
        "CACHE_READ": 40,
        "CACHE_WRITE": 10,
        "REASONING": 5,
    }


async def test_what_the_ledger_charged_is_kept_and_shows_how_its_prices_compare_with_ours(
    quiet_world: World, ledger: RecordingLedger
) -> None:
    attempt = await _attempt(quiet_world)
    await _settled(attempt, cost="0.004")
    delivery = UsageDelivery(quiet_world.database, ledger)
    await delivery.deliver()
    ledger.charge = Amount("USD", Decimal("0.012"))
    await _settled(attempt, cost="0.01")

    await delivery.deliver()

    async with quiet_world.database.raw_tenant(attempt.tenant_id) as tx:
        outstanding = await usage.outstanding(tx, attempt.run_id)
    # The first was unpriced: no charge says nothing about prices.
    assert outstanding == usage.Outstanding({}, {}, Decimal("0.01"), Decimal("0.012"))
    seen = await quiet_world.run(attempt.run_id)
    assert [each.value for each in seen.usage.costs] == ["0.014"], "as we computed it"


async def test_the_same_unit_makes_the_same_message(
    quiet_world: World, ledger: RecordingLedger
) -> None:
    await _settled(await _attempt(quiet_world))
    await UsageDelivery(quiet_world.database, ledger).deliver()

    [unit] = ledger.units
    first, again = unit_to_proto(unit), unit_to_proto(replace(unit))

    assert first == again
    assert first.source_system == "executor"
    assert first.llm_call.token_counts[0] == usage_pb2.TokenCount(
        kind=usage_pb2.TOKEN_KIND_INPUT, count=50
    )


async def test_a_pending_unit_is_not_delivered(quiet_world: World, ledger: RecordingLedger) -> None:
    await _pending(await _attempt(quiet_world))

    assert await UsageDelivery(quiet_world.database, ledger).deliver() == 0


async def test_a_ledger_that_does_not_answer_gets_the_unit_again(
    quiet_world: World, clock: Clock
) -> None:
    class Silent(RecordingLedger):
        async def record(self, tenant_id: str, units: object) -> list[Answer]:
            raise PeerError("ledger", ErrorKind.UNAVAILABLE, "", "nobody answers")

    call_id = await _settled(await _attempt(quiet_world))
    await UsageDelivery(quiet_world.database, Silent()).deliver()
    ledger = RecordingLedger()
    delivery = UsageDelivery(quiet_world.database, ledger)

    await clock.advance(quiet_world.database, timedelta(minutes=1))

    assert await delivery.deliver() == 1
    assert ledger.units[0].call_id == call_id


async def test_a_conflict_alarms_and_is_kept_and_not_tried_again(
    quiet_world: World, clock: Clock
) -> None:
    call_id = await _settled(await _attempt(quiet_world))
    delivery = UsageDelivery(quiet_world.database, RecordingLedger(answer=Recording.CONFLICT))

    await delivery.deliver()
    await clock.advance(quiet_world.database, timedelta(days=1))

    assert await delivery.deliver() == 0
    assert delivery.conflicts == 1
    assert await _column(quiet_world, call_id, "record_problem") == "CONFLICT"
    assert await _column(quiet_world, call_id, "record_time") is None


async def test_a_rejected_unit_is_kept_and_tried_again_later(
    quiet_world: World, clock: Clock
) -> None:
    call_id = await _settled(await _attempt(quiet_world))
    ledger = RecordingLedger(answer=Recording.REJECTED)
    delivery = UsageDelivery(quiet_world.database, ledger)
    await delivery.deliver()
    assert await _column(quiet_world, call_id, "record_problem") == "REJECTED"

    ledger.answer = Recording.RECORDED
    assert await delivery.deliver() == 0
    await clock.advance(quiet_world.database, timedelta(hours=1))

    assert await delivery.deliver() == 1
    assert await _column(quiet_world, call_id, "record_problem") is None
    assert await _column(quiet_world, call_id, "record_time") is not None


async def test_a_run_is_closed_when_it_is_final_and_the_ledger_has_all_its_units(
    quiet_world: World, ledger: RecordingLedger
) -> None:
    attempt = await _attempt(quiet_world)
    delivery = UsageDelivery(quiet_world.database, ledger)
    call_ids = [await _settled(attempt) for _ in range(3)]
    await delivery.deliver()
    await delivery.close()
    assert not ledger.closings
    late = await _pending(attempt)
    assert await attempt.succeed()
    await delivery.close()
    assert not ledger.closings

    await _settle(attempt, late)
    await delivery.deliver()
    await delivery.close()
    await delivery.close()

    [closing] = ledger.closings
    assert closing.digest == units_digest([*call_ids, late])


async def test_a_run_without_units_is_closed_too(
    quiet_world: World, ledger: RecordingLedger
) -> None:
    attempt = await _attempt(quiet_world)
    assert await attempt.succeed()

    await UsageDelivery(quiet_world.database, ledger).close()

    [closing] = ledger.closings
    assert (closing.run_id, closing.call_ids) == (attempt.run_id, ())


async def test_a_run_that_the_ledger_does_not_close_holds_up_no_other(
    quiet_world: World,
) -> None:
    first, second = await _attempt(quiet_world), await _attempt(quiet_world)
    assert await first.succeed()
    assert await second.succeed()
    ledger = StubbornLedger(first.run_id)

    await UsageDelivery(quiet_world.database, ledger).close()

    assert [closing.run_id for closing in ledger.closings] == [second.run_id]


async def test_a_call_of_a_dead_attempt_is_settled_from_its_estimate(
    quiet_world: World, clock: Clock, ledger: RecordingLedger
) -> None:
    attempt = await _attempt(quiet_world)
    call_id = await _pending(attempt)
    delivery = UsageDelivery(quiet_world.database, ledger)
    await delivery.settle_lost()
    assert await _column(quiet_world, call_id, "state") == "PENDING"

    await clock.advance(quiet_world.database, LEASE + timedelta(seconds=STALE_SECONDS + 1))
    await delivery.settle_lost()
    await delivery.deliver()

    [unit] = ledger.units
    assert (unit.call_id, unit.estimated) == (call_id, True)


async def _attempt(world: World) -> Attempt:
    return await world.claim((await world.start(await world.grant())).run_id)


async def _pending(attempt: Attempt) -> str:
    call_id = new_id()
    async with attempt.database.raw_tenant(attempt.tenant_id) as tx:
        await tx.execute(
            "INSERT INTO usage_units (call_id, tenant_id, run_id, attempt, grant_id, account_id,"
            " kind, node, model, provider, state, estimate, occur_time)"
            " SELECT $1, tenant_id, run_id, attempt, grant_id, 'account', 'LLM_CALL', 'node', 'm',"
            " 'p', 'PENDING', $3, cogni_now() FROM runs WHERE run_id = $2",
            call_id,
            attempt.run_id,
            json.dumps(USED),
        )
    return call_id


async def _settle(attempt: Attempt, call_id: str, cost: str = "0.01") -> None:
    async with attempt.database.raw_tenant(attempt.tenant_id) as tx:
        await tx.execute(
            "UPDATE usage_units SET state = 'SETTLED', actual = $2, settle_time = cogni_now(),"
            " cost_asset = 'USD', cost_value = $3 WHERE call_id = $1",
            call_id,
            json.dumps(USED),
            Decimal(cost),
        )


async def _settled(attempt: Attempt, cost: str = "0.01") -> str:
    call_id = await _pending(attempt)
    await _settle(attempt, call_id, cost)
    return call_id


async def _column(world: World, call_id: str, column: str) -> object:
    async with world.database.raw_jobs() as tx:
        found: object = await tx.fetchval(
            f"SELECT {column} FROM usage_units WHERE call_id = $1", call_id
        )
        return found


class StubbornLedger(RecordingLedger):
    """Has a defect that one run meets."""

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self._run_id = run_id

    async def close_run(self, closing: Closing) -> None:
        if closing.run_id == self._run_id:
            raise PeerError("ledger", ErrorKind.INTERNAL, "INTERNAL", "a defect")
        await super().close_run(closing)
