"""Leases and the journal: fair claims, dead holders, and that a lost lease writes nothing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import pytest

from cogni.executor.v1.run_event_pb2 import CustomEvent
from services.executor.events import Draft
from services.executor.runner.journal import Holding, Journal, LeaseLostError
from services.executor.store import leases
from services.executor.store.journal import Write
from services.executor.store.leases import Claim, LeaseTimes
from services.runtime.database import Database
from services.runtime.errors import unavailable
from tests.databases import Clock
from tests.runner.fleet import TENANT, Fleet

TIMES = LeaseTimes(
    lease=timedelta(seconds=10),
    clock_skew=timedelta(seconds=1),
    patience=timedelta(seconds=60),
    company_suspicions_max=3,
)

# A busy machine may let a test's own transaction idle for longer than a server's may.
_PATIENT = "SET LOCAL idle_in_transaction_session_timeout = 0"


async def _claim(fleet: Fleet, count: int = 10, holder: str = "h1") -> list[Claim]:
    async with fleet.database.raw_jobs() as tx:
        return await leases.claim_ready(tx, holder, count, TIMES)


async def _claim_expired(fleet: Fleet, *, alone: bool = True) -> Claim | None:
    async with fleet.database.raw_jobs() as tx:
        return await leases.claim_expired(tx, "h2", TIMES, alone=alone)


def _holding(claim: Claim) -> Holding:
    return Holding(claim.run.run_id, claim.run.tenant_id, claim.epoch, claim.run.attempt)


def _draft(name: str) -> Draft:
    return Draft(CustomEvent(name=name))


async def test_racing_runners_never_claim_one_run_twice(fleet: Fleet) -> None:
    run_ids = {await fleet.start("any") for _ in range(20)}

    claims = await asyncio.gather(*[_claim(fleet, 7, f"h{number}") for number in range(8)])

    claimed = [claim.run.run_id for batch in claims for claim in batch]
    assert sorted(claimed) == sorted(set(claimed))
    while batch := await _claim(fleet, 7):
        claimed += [claim.run.run_id for claim in batch]
    assert set(claimed) == run_ids


async def test_tenants_take_turns_however_long_one_queue_is(fleet: Fleet) -> None:
    grant_id = await fleet.grant()
    for _ in range(10):
        await fleet.start("any", grant_id, tenant_id="t1")
    late = [await fleet.start("any", grant_id, tenant_id=t) for t in ("t2", "t3")]

    claims = await _claim(fleet, 3)

    assert {claim.run.tenant_id for claim in claims} == {"t1", "t2", "t3"}
    assert set(late) < {claim.run.run_id for claim in claims}


async def test_runs_whose_old_tokens_still_work_hold_up_no_other_of_their_tenant(
    fleet: Fleet,
) -> None:
    for _ in range(6):
        await fleet.start("any")
    await fleet.execute(
        "UPDATE run_leases SET token_expire_time = cogni_now() + interval '1 minute'"
    )
    free = await fleet.start("any")

    claims = await _claim(fleet, 1)

    assert [claim.run.run_id for claim in claims] == [free]


async def test_a_claim_raises_the_epoch_and_counts_the_attempt(fleet: Fleet) -> None:
    run_id = await fleet.start("any")

    (claim,) = await _claim(fleet)

    run = await fleet.run(run_id)
    assert (claim.epoch, run.attempt, run.state, claim.cause) == (1, 1, "RUNNING", "STARTED")


async def test_an_expired_lease_is_claimed_only_after_the_clock_skew(
    fleet: Fleet, clock: Clock
) -> None:
    await fleet.start("any")
    await _claim(fleet)
    await clock.advance(fleet.database, timedelta(seconds=10.5))
    assert await _claim_expired(fleet) is None

    await clock.advance(fleet.database, timedelta(seconds=1))
    claim = await _claim_expired(fleet)

    assert claim is not None
    assert (claim.epoch, claim.cause, claim.suspicions, claim.deaths) == (2, "LEASE_EXPIRED", 1, 0)


async def test_only_the_death_of_a_process_that_carried_it_alone_is_laid_to_a_run(
    fleet: Fleet, clock: Clock
) -> None:
    await fleet.start("any")
    await _claim(fleet)
    deaths = []
    for _ in range(3):
        await clock.advance(fleet.database, timedelta(seconds=12))
        claim = await _claim_expired(fleet)
        assert claim is not None
        deaths.append(claim.deaths)

    assert deaths == [0, 1, 2]


async def test_a_suspect_keeps_away_from_company_until_it_has_waited_long_enough(
    fleet: Fleet, clock: Clock
) -> None:
    await fleet.start("any")
    await _claim(fleet)
    await clock.advance(fleet.database, timedelta(seconds=12))
    assert await _claim_expired(fleet, alone=False) is None

    await clock.advance(fleet.database, timedelta(seconds=60))

    assert await _claim_expired(fleet, alone=False) is not None


async def test_events_of_many_attempts_are_numbered_without_gaps(
    fleet: Fleet, journal: Journal
) -> None:
    for _ in range(5):
        await fleet.start("any")
    claims = await _claim(fleet)

    futures = [
        journal.write(_holding(claim), drafts=[_draft(f"{number}")])
        for number in range(20)
        for claim in claims
    ]
    await asyncio.gather(*futures)

    for claim in claims:
        events = await fleet.events(claim.run.run_id)
        assert [e.custom.name for e in events[1:]] == [str(number) for number in range(20)]


async def test_a_flush_waits_for_the_commit_that_is_under_way(
    fleet: Fleet, journal: Journal
) -> None:
    await fleet.start("any")
    (claim,) = await _claim(fleet)
    async with fleet.database.raw_jobs() as tx:
        await tx.execute(_PATIENT)
        await tx.execute("SELECT 1 FROM run_leases FOR UPDATE")
        written = journal.write(_holding(claim), drafts=[_draft("slow")])
        await asyncio.sleep(0)
        flushed = asyncio.create_task(journal.flush(_holding(claim)))
        done, _ = await asyncio.wait({flushed}, timeout=0.2)
        assert not done
    async with asyncio.timeout(60):
        await flushed

    assert written.done()


async def test_an_attempt_that_lost_its_lease_writes_no_event_and_no_act_but_its_facts(
    fleet: Fleet, journal: Journal, clock: Clock
) -> None:
    run_id = await fleet.start("any")
    (old,) = await _claim(fleet)
    await clock.advance(fleet.database, timedelta(seconds=12))
    new = await _claim_expired(fleet)
    assert new is not None
    act = Write("UPDATE runs SET owner = $1", ("mallory",))
    fact = Write("UPDATE runs SET trigger_id = $1", ("fact",))

    lost = journal.write(_holding(old), drafts=[_draft("old")], acts=[act], facts=[fact])
    kept = journal.write(_holding(new), drafts=[_draft("new")])
    with pytest.raises(LeaseLostError):
        await lost
    await kept

    run = await fleet.run(run_id)
    assert (run.owner, run.origin.trigger_id) == ("alice", "fact")
    assert [e.custom.name for e in (await fleet.events(run_id))[1:]] == ["new"]


async def test_a_row_that_somebody_locks_holds_up_no_other_run(
    fleet: Fleet, journal: Journal
) -> None:
    for _ in range(2):
        await fleet.start("any")
    first, second = await _claim(fleet)
    async with fleet.database.raw_jobs() as tx:
        await tx.execute(_PATIENT)
        await tx.execute("SELECT 1 FROM run_leases WHERE run_id = $1 FOR UPDATE", first.run.run_id)
        blocked = journal.write(_holding(first), drafts=[_draft("blocked")])
        async with asyncio.timeout(60):
            await journal.write(_holding(second), drafts=[_draft("free")])
        assert not blocked.done()
    async with asyncio.timeout(60):
        await blocked

    assert (await fleet.kinds(first.run.run_id))[-1] == "custom"


async def test_what_one_attempt_cannot_store_harms_no_other(fleet: Fleet, journal: Journal) -> None:
    for _ in range(2):
        await fleet.start("any")
    first, second = await _claim(fleet)
    broken = Write("SELECT 1 / $1::integer", (0,))

    bad = journal.write(_holding(first), acts=[broken])
    good = journal.write(_holding(second), drafts=[_draft("fine")])
    with pytest.raises(Exception, match="division by zero"):
        await bad
    await good

    assert (await fleet.kinds(second.run.run_id))[-1] == "custom"


async def test_a_connection_cut_between_batches_loses_and_doubles_nothing(
    fleet: Fleet, journal: Journal, disconnect: Callable[[Database, str], Awaitable[None]]
) -> None:
    await fleet.start("any")
    (claim,) = await _claim(fleet)
    futures = []
    for number in range(60):
        futures.append(journal.write(_holding(claim), drafts=[_draft(str(number))]))
        await asyncio.sleep(0)
        if number % 20 == 10:
            await disconnect(fleet.database, "tests")
    async with asyncio.timeout(60):
        await asyncio.gather(*futures)

    names = [event.custom.name for event in (await fleet.events(claim.run.run_id))[1:]]
    assert names == [str(number) for number in range(60)]
    assert claim.run.tenant_id == TENANT


class _RestartingDatabase:
    """Commits once without an answer, then cannot be reached for `refusals` transactions."""

    def __init__(self, database: Database, refusals: int) -> None:
        self._database = database
        self._refusals = refusals
        self._committed = False

    @asynccontextmanager
    async def raw_jobs(self) -> AsyncIterator[Any]:
        if self._committed and self._refusals > 0:
            self._refusals -= 1
            raise unavailable("the database restarts")
        async with self._database.raw_jobs() as tx:
            yield tx
        if not self._committed:
            self._committed = True
            raise unavailable("the answer to COMMIT is lost")


async def test_a_commit_whose_answer_a_restart_swallowed_is_not_made_twice(fleet: Fleet) -> None:
    await fleet.start("any")
    (claim,) = await _claim(fleet)
    journal = Journal(cast(Database, _RestartingDatabase(fleet.database, refusals=2)))

    written = journal.write(_holding(claim), drafts=[_draft("once")])
    async with asyncio.timeout(60):
        await journal.drain()
        await written

    events = await fleet.events(claim.run.run_id)
    assert [event.custom.name for event in events[1:]] == ["once"]


async def test_what_is_being_committed_when_the_journal_is_stopped_is_not_lost(
    fleet: Fleet,
) -> None:
    await fleet.start("any")
    (claim,) = await _claim(fleet)
    journal = Journal(fleet.database)
    running = asyncio.create_task(journal.run())
    async with fleet.database.raw_jobs() as tx:
        await tx.execute(_PATIENT)
        await tx.execute("LOCK TABLE run_events")
        written = journal.write(_holding(claim), drafts=[_draft("late")])
        await _until_somebody_waits_for_a_lock(fleet)
        running.cancel()
        await asyncio.sleep(0)
    async with asyncio.timeout(10):
        await asyncio.gather(running, return_exceptions=True)
        await journal.drain()
        await written

    events = await fleet.events(claim.run.run_id)
    assert [event.custom.name for event in events[1:]] == ["late"]


async def _until_somebody_waits_for_a_lock(fleet: Fleet) -> None:
    async with asyncio.timeout(60):
        while True:
            waiting = await fleet.rows(
                "SELECT FROM pg_locks JOIN pg_database ON pg_database.oid = database"
                " WHERE NOT granted AND datname = current_database()"
            )
            if waiting:
                return
            await asyncio.sleep(0.01)
