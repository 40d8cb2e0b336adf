"""Answers that come when their claim is over, or that the database cannot take at once."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import pytest

from cogni.egress_rules import EgressRules
from services.connections.access_log import Decision, Record, RecordFilter
from services.connections.connection import State, StateReason
from services.connections.connection_requests import UpdateWanted
from services.connections.keyring import KeyRing
from services.connections.providers.catalogue import Catalogue
from services.connections.providers.failures import rejected
from services.connections.renewal import RenewalLimits
from services.connections.secret import AuthKind, Secret
from services.connections.store import access_log
from services.connections.use_cases.changes import Changes
from services.runtime.database import Database
from services.runtime.errors import ServiceError
from services.runtime.pools import DatabaseLimits
from tests.connections.conftest import NoHttp, World, make_world, scripted_provider, user
from tests.connections.renewals import QUICK, generation_of, state_of
from tests.databases import Clock, DatabaseFactory


@pytest.fixture
async def db(database: DatabaseFactory) -> Database:
    return await database("connections")


async def refresh_records(world: World) -> list[Record]:
    wanted = RecordFilter(action="REFRESH_CREDENTIAL")
    async with world.database.tenant("t1") as tx:
        return await access_log.read_records(
            tx, "t1", wanted, after_sequence=None, oldest_first=True, limit=10
        )


class Heard(logging.Handler):
    """Tells once that anything was logged."""

    def __init__(self) -> None:
        super().__init__()
        self.event = asyncio.Event()

    def emit(self, record: logging.LogRecord) -> None:
        self.event.set()


async def test_a_late_answer_is_kept_when_nobody_was_faster(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    slow, impatient = make_world(db, key_ring, limits=QUICK), make_world(db, key_ring, limits=QUICK)
    made = await slow.connect(user())
    slow.sessions.gate, slow.sessions.asked = asyncio.Event(), asyncio.Event()
    late = asyncio.create_task(slow.renewals.renew("t1", made.connection_id, 1))
    await slow.sessions.asked.wait()
    await clock.advance(db, timedelta(seconds=30))
    impatient.sessions.next_failure = rejected("used by the slow one")
    with pytest.raises(ServiceError):
        await impatient.renewals.renew("t1", made.connection_id, 1)
    assert (await state_of(slow, made))[0] is State.NEEDS_REAUTH

    slow.sessions.gate.set()
    await late

    assert await state_of(slow, made) == (State.ACTIVE, StateReason.NONE)
    assert await generation_of(slow, made) == 2
    assert await slow.renewals.renew_due() == 1, "the other's use may have ended the grant"


async def test_the_loss_of_a_grant_whose_token_two_presented_is_found_and_named_at_once(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    slow, quick = make_world(db, key_ring, limits=QUICK), make_world(db, key_ring, limits=QUICK)
    made = await slow.connect(user())
    slow.sessions.gate, slow.sessions.asked = asyncio.Event(), asyncio.Event()
    late = asyncio.create_task(slow.renewals.renew("t1", made.connection_id, 1))
    await slow.sessions.asked.wait()
    await clock.advance(db, timedelta(seconds=30))
    quick.sessions.gate, quick.sessions.asked = asyncio.Event(), asyncio.Event()
    refused = asyncio.create_task(quick.renewals.renew("t1", made.connection_id, 1))
    await quick.sessions.asked.wait()
    slow.sessions.gate.set()
    await late
    quick.sessions.next_failure = rejected("used by the slow one")
    quick.sessions.gate.set()
    await refused
    assert await state_of(slow, made) == (State.ACTIVE, StateReason.NONE)

    slow.sessions.next_failure = rejected("the grant was ended")
    assert await slow.renewals.renew_due() == 1

    assert await state_of(slow, made) == (State.NEEDS_REAUTH, StateReason.LOST_ROTATION)
    told = [record.entry for record in await refresh_records(slow)]
    assert [(each.decision, each.details.get("overtaken", "")) for each in told] == [
        (Decision.ALLOWED, "yes"),
        (Decision.FAILED, "yes"),
        (Decision.FAILED, ""),
    ]


async def test_an_answer_that_the_database_cannot_take_at_once_is_kept(
    database: DatabaseFactory, key_ring: KeyRing
) -> None:
    limits = DatabaseLimits(lock=timedelta(milliseconds=20))
    db = await database("connections", limits=limits)
    world = make_world(db, key_ring, limits=QUICK)
    made = await world.connect(user())
    world.sessions.gate, world.sessions.asked = asyncio.Event(), asyncio.Event()
    renewing = asyncio.create_task(world.renewals.renew("t1", made.connection_id, 1))
    await world.sessions.asked.wait()
    heard = Heard()
    logging.getLogger("services.connections.use_cases.sessions").addHandler(heard)

    async with db.tenant("t1") as tx:
        await access_log.lock_head(tx, "t1")
        world.sessions.gate.set()
        await heard.event.wait()
    await renewing

    assert await generation_of(world, made) == 2
    assert world.sessions.renewed == 1


def test_a_token_is_not_sent_when_its_answer_could_come_after_the_claim() -> None:
    limits = RenewalLimits(provider_call=timedelta(seconds=10), claim=timedelta(seconds=20))
    assert limits.may_send(timedelta(seconds=5), single_use=True)
    assert not limits.may_send(timedelta(seconds=5.1), single_use=True)
    assert limits.may_send(timedelta(seconds=15), single_use=False)
    assert not limits.may_send(timedelta(seconds=15.1), single_use=False)


async def test_a_late_answer_to_a_secret_that_was_replaced_is_dropped(
    db: Database, key_ring: KeyRing
) -> None:
    slow, quick = make_world(db, key_ring, limits=QUICK), make_world(db, key_ring, limits=QUICK)
    made = await slow.connect(user())
    slow.sessions.gate, slow.sessions.asked = asyncio.Event(), asyncio.Event()
    late = asyncio.create_task(slow.renewals.renew("t1", made.connection_id, 1))
    await slow.sessions.asked.wait()
    catalogue = Catalogue([scripted_provider(quick.sessions)])
    changes = Changes(db, quick.vault, catalogue, NoHttp(), EgressRules())
    other = Secret(AuthKind.APP_PASSWORD, {"identifier": "bea", "password": "new"})
    wanted = UpdateWanted(made.connection_id, frozenset(), secret=other, skip_check=True)
    await changes.update(user(), wanted)
    await quick.renewals.renew("t1", made.connection_id, 0)

    slow.sessions.gate.set()
    await late

    assert quick.sessions.begun == 1
    assert await generation_of(quick, made) == 1, "the old account's answer replaced nothing"


async def test_a_refusal_that_somebodys_answer_overtook_declares_nothing_dead(
    db: Database, key_ring: KeyRing, clock: Clock
) -> None:
    slow, quick = make_world(db, key_ring, limits=QUICK), make_world(db, key_ring, limits=QUICK)
    made = await slow.connect(user())
    slow.sessions.gate, slow.sessions.asked = asyncio.Event(), asyncio.Event()
    slow.sessions.next_failure = rejected("used by the quick one")
    late = asyncio.create_task(slow.renewals.renew("t1", made.connection_id, 1))
    await slow.sessions.asked.wait()
    await clock.advance(db, timedelta(seconds=30))
    await quick.renewals.renew("t1", made.connection_id, 1)

    slow.sessions.gate.set()
    await late

    assert await state_of(slow, made) == (State.ACTIVE, StateReason.NONE)
