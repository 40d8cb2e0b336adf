"""Renewing sessions: once a generation, whoever asks; nothing lost that could be kept."""

from __future__ import annotations

import asyncio
import contextlib
from datetime import datetime, timedelta

import pytest

from services.connections.connection import Connection, State, StateReason
from services.connections.keyring import KeyRing
from services.connections.providers.failures import FailureKind, ProviderError, rejected
from services.connections.providers.http import Http
from services.connections.providers.provider import Material, RefreshPolicy
from services.connections.renewal import RenewalLimits
from services.connections.secret import Session
from services.connections.store import refreshes
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from tests.connections.conftest import (
    ScriptedSessions,
    World,
    make_world,
    user,
)
from tests.connections.renewals import QUICK, generation_of, state_of
from tests.databases import Clock, DatabaseFactory

IMPATIENT = RenewalLimits(claim=timedelta(seconds=0.3), poll=timedelta(milliseconds=10))


@pytest.fixture
async def db(database: DatabaseFactory) -> Database:
    return await database("connections")


def unreachable(*, maybe_done: bool) -> ProviderError:
    return ProviderError(FailureKind.UNAVAILABLE, "no answer", maybe_done=maybe_done)


async def crash_after_claim(world: World, made: Connection, *, ended: bool) -> None:
    """Leave behind what a process leaves that dies between claim and answer."""
    async with world.database.tenant("t1") as tx:
        await refreshes.lock(tx, "t1", made.connection_id)
        await refreshes.claim(
            tx,
            "t1",
            made.connection_id,
            claim_id=new_id(),
            generation=1,
            lasts=timedelta(seconds=-1 if ended else 60),
            attempts=1,
            maybe_done=False,
        )


async def test_many_callers_in_many_processes_make_one_call(
    db: Database, key_ring: KeyRing
) -> None:
    provider = ScriptedSessions()
    processes = [make_world(db, key_ring, provider, QUICK) for _ in range(4)]
    made = await processes[0].connect(user())

    async with asyncio.TaskGroup() as group:
        for process in processes:
            for _ in range(8):
                group.create_task(process.renewals.renew("t1", made.connection_id, 1))

    assert provider.renewed == 1
    assert await generation_of(processes[0], made) == 2
    assert await state_of(processes[0], made) == (State.ACTIVE, StateReason.NONE)


async def test_asking_for_a_generation_that_is_over_calls_nobody(
    db: Database, key_ring: KeyRing
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    await world.renewals.renew("t1", made.connection_id, 1)
    await world.renewals.renew("t1", made.connection_id, 1)
    assert world.sessions.renewed == 1


async def test_a_caller_that_gives_up_does_not_end_the_renewal(
    db: Database, key_ring: KeyRing
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    world.sessions.gate, world.sessions.asked = asyncio.Event(), asyncio.Event()
    caller = asyncio.create_task(world.renewals.renew("t1", made.connection_id, 1))
    await world.sessions.asked.wait()
    caller.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await caller

    world.sessions.gate.set()
    await world.renewals.close()

    assert await generation_of(world, made) == 2


async def test_an_abandoned_claim_is_taken_over_and_the_grant_kept_when_still_honoured(
    db: Database, key_ring: KeyRing
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    await crash_after_claim(world, made, ended=True)

    await world.renewals.renew("t1", made.connection_id, 1)

    assert await generation_of(world, made) == 2


async def test_a_claim_that_still_runs_is_waited_for(db: Database, key_ring: KeyRing) -> None:
    world = make_world(db, key_ring, limits=IMPATIENT)
    made = await world.connect(user())
    await crash_after_claim(world, made, ended=False)
    with pytest.raises(ServiceError) as caught:
        await world.renewals.renew("t1", made.connection_id, 1)
    assert caught.value.reason == "REFRESH_IN_PROGRESS"
    assert world.sessions.renewed == 0


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (RefreshPolicy.STRICT, StateReason.LOST_ROTATION),
        (RefreshPolicy.GRACE, StateReason.LOST_ROTATION),
        (RefreshPolicy.REUSABLE, StateReason.CREDENTIAL_REJECTED),
    ],
)
async def test_a_loss_that_cannot_be_prevented_is_named(
    db: Database, key_ring: KeyRing, policy: RefreshPolicy, reason: StateReason
) -> None:
    world = make_world(db, key_ring, limits=QUICK, refresh_policy=policy)
    made = await world.connect(user())
    await crash_after_claim(world, made, ended=True)
    world.sessions.next_failure = rejected("used before")

    with pytest.raises(ServiceError):
        await world.renewals.renew("t1", made.connection_id, 1)

    assert await state_of(world, made) == (State.NEEDS_REAUTH, reason)


async def test_a_refusal_without_a_lost_answer_is_a_plain_rejection(
    db: Database, key_ring: KeyRing
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    world.sessions.next_failure = rejected("withdrawn")
    with pytest.raises(ServiceError):
        await world.renewals.renew("t1", made.connection_id, 1)
    assert await state_of(world, made) == (State.NEEDS_REAUTH, StateReason.CREDENTIAL_REJECTED)


async def test_a_lost_answer_is_remembered_until_the_provider_says_more(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    world.sessions.next_failure = unreachable(maybe_done=True)
    with pytest.raises(ServiceError) as caught:
        await world.renewals.renew("t1", made.connection_id, 1)
    assert caught.value.reason == "PROVIDER_UNAVAILABLE"
    assert await state_of(world, made) == (State.ACTIVE, StateReason.NONE)

    await clock.advance(db, timedelta(minutes=10))
    world.sessions.next_failure = rejected("used before")
    with pytest.raises(ServiceError):
        await world.renewals.renew("t1", made.connection_id, 1)

    assert await state_of(world, made) == (State.NEEDS_REAUTH, StateReason.LOST_ROTATION)


async def test_nobody_asks_again_before_the_provider_wants_to_be_asked(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    world.sessions.next_failure = ProviderError(
        FailureKind.RATE_LIMITED, "slow down", retry_after=timedelta(minutes=30)
    )
    for _ in range(2):
        with pytest.raises(ServiceError) as caught:
            await world.renewals.renew("t1", made.connection_id, 1)
        assert caught.value.reason == "PROVIDER_RATE_LIMITED"
        assert caught.value.retry_after is not None
        assert caught.value.retry_after > timedelta(minutes=29)
    assert world.sessions.renewed == 1

    await clock.advance(db, timedelta(minutes=31))
    await world.renewals.renew("t1", made.connection_id, 1)
    assert world.sessions.renewed == 2


async def test_a_refused_session_begins_anew_where_the_secret_allows_it(
    db: Database, key_ring: KeyRing
) -> None:
    world = make_world(db, key_ring, limits=QUICK, restarts=True)
    made = await world.connect(user())
    world.sessions.next_failure = rejected("session revoked")
    await world.renewals.renew("t1", made.connection_id, 1)
    assert (world.sessions.begun, world.sessions.renewed) == (2, 1)
    assert await state_of(world, made) == (State.ACTIVE, StateReason.NONE)


async def test_due_sessions_are_renewed_behind_and_others_left_alone(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    assert await world.renewals.renew_due() == 0
    await clock.advance(db, timedelta(minutes=116))
    assert await world.renewals.renew_due() == 1
    assert await world.renewals.renew_due() == 0
    assert await generation_of(world, made) == 2


class InPairs(ScriptedSessions):
    """Answers when two wait."""

    def __init__(self) -> None:
        super().__init__()
        self.both = asyncio.Barrier(2)

    async def renew(self, material: Material, http: Http, now: datetime) -> Session:
        await self.both.wait()
        return await super().renew(material, http, now)


async def test_due_sessions_do_not_wait_for_a_slow_provider(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    world = make_world(db, key_ring, InPairs(), limits=QUICK)
    made = [await world.connect(user()) for _ in range(2)]
    await clock.advance(db, timedelta(minutes=118))
    async with asyncio.timeout(10):
        assert await world.renewals.renew_due() == 2
    assert [await generation_of(world, each) for each in made] == [2, 2]


async def test_an_abandoned_renewal_is_settled_without_anybody_asking(
    db: Database, key_ring: KeyRing
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    await crash_after_claim(world, made, ended=True)
    assert await world.renewals.renew_due() == 1
    assert await world.renewals.renew_due() == 0
    assert await generation_of(world, made) == 2
    assert await state_of(world, made) == (State.ACTIVE, StateReason.NONE)


async def test_a_dead_connection_is_not_asked_about_again(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    world.sessions.next_failure = rejected("withdrawn")
    with pytest.raises(ServiceError):
        await world.renewals.renew("t1", made.connection_id, 1)
    await clock.advance(db, timedelta(hours=3))
    assert await world.renewals.renew_due() == 0
    assert world.sessions.renewed == 1
