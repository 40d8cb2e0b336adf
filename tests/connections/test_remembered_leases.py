"""What a server remembers of a connection saves it the reading, and decides nothing."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest
from sqlalchemy import text

from services.connections.access_log import Decision, RecordFilter, first_break
from services.connections.connection import State, StateReason
from services.connections.credential import BearerCredential
from services.connections.keyring import KeyRing
from services.connections.providers.http import Http
from services.connections.providers.provider import LeaseWish, Material
from services.connections.secret import Session
from services.connections.store import access_log, connections, lease_batches, leases
from services.connections.use_cases import known
from services.connections.use_cases.access_records import list_records
from services.runtime.caller import Caller
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from tests.connections.conftest import CANARY, World, lease_wanted, make_world, runner, user
from tests.databases import DatabaseFactory


class Reads:
    """Counts what the leases of this test read."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count = 0
        read = lease_batches.read

        async def counted(tx: Any, tenant_id: str, ids: Sequence[str]) -> Any:
            self.count += 1
            return await read(tx, tenant_id, ids)

        monkeypatch.setattr(lease_batches, "read", counted)


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    return Reads(monkeypatch)


@pytest.fixture
async def worlds(database: DatabaseFactory, key_ring: KeyRing) -> tuple[World, World]:
    """Two processes with one database and one provider."""
    first = make_world(await database("connections"), key_ring)
    return first, make_world(first.database, key_ring, first.sessions)


def on_behalf_of(subject: str, caller: Caller) -> Caller:
    return replace(caller, on_behalf_of=subject)


async def lease(world: World, connection_id: str, **changes: Any) -> str:
    """The token of a lease for an invocation of its own."""
    wanted = lease_wanted(connection_id, invocation_id=new_id(), **changes)
    given = await world.leases.lease(runner(connection_id), wanted)
    assert isinstance(given.credential, BearerCredential)
    return given.credential.access_token.rpartition("-")[2]


async def test_a_connection_that_was_leased_is_not_read_again(world: World, reads: Reads) -> None:
    made = await world.connect(user())
    for _ in range(3):
        await lease(world, made.connection_id)
    assert reads.count == 1


async def test_what_another_process_renewed_is_leased_as_it_is_now(
    worlds: tuple[World, World], reads: Reads
) -> None:
    here, there = worlds
    made = await here.connect(user())
    assert await lease(here, made.connection_id) == "1"

    await there.renewals.renew("t1", made.connection_id, 1)

    assert await lease(here, made.connection_id) == "2"
    assert reads.count == 2


async def test_what_was_remembered_for_minutes_or_is_large_is_read_again(
    database: DatabaseFactory,
    key_ring: KeyRing,
    reads: Reads,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world(await database("connections"), key_ring)
    made = await world.connect(user())
    with monkeypatch.context() as smaller:
        smaller.setattr(known, "KEPT_BYTES_MAX", 10)
        await lease(world, made.connection_id)
        await lease(world, made.connection_id)
    assert reads.count == 2

    monkeypatch.setattr(known, "KEPT_FOR", timedelta(0))
    await lease(world, made.connection_id)
    await lease(world, made.connection_id)
    assert reads.count == 4


async def test_a_consent_withdrawn_since_is_missed_at_the_next_lease(
    worlds: tuple[World, World],
) -> None:
    here, there = worlds
    made = await here.connect(user("ann"), consent_subjects=("bea",))
    bea = on_behalf_of("bea", runner(made.connection_id))
    await here.leases.lease(bea, lease_wanted(made.connection_id))
    async with there.database.tenant("t1") as tx:
        await connections.remove_consents(tx, "t1", made.connection_id, ["bea"])

    with pytest.raises(ServiceError) as caught:
        await here.leases.lease(bea, lease_wanted(made.connection_id, invocation_id="second"))

    assert caught.value.reason == "CONSENT_WITHDRAWN"
    await here.leases.lease(on_behalf_of("ann", bea), lease_wanted(made.connection_id))


async def test_a_consent_given_since_counts_at_once(worlds: tuple[World, World]) -> None:
    here, there = worlds
    made = await here.connect(user("ann"))
    await lease(here, made.connection_id)
    async with there.database.tenant("t1") as tx:
        await connections.add_consents(tx, "t1", made.connection_id, ["bea"])
    bea = on_behalf_of("bea", runner(made.connection_id))
    assert await here.leases.lease(bea, lease_wanted(made.connection_id))


async def test_a_connection_that_died_since_is_refused_and_recorded_once(
    worlds: tuple[World, World],
) -> None:
    here, there = worlds
    made = await here.connect(user())
    await lease(here, made.connection_id)
    async with there.database.tenant("t1") as tx:
        await connections.change_state(
            tx,
            "t1",
            made.connection_id,
            State.NEEDS_REAUTH,
            reason=StateReason.WITHDRAWN_AT_PROVIDER,
        )

    with pytest.raises(ServiceError) as caught:
        await lease(here, made.connection_id)

    assert caught.value.reason == "CONNECTION_NEEDS_REAUTH"
    page, _, _ = await list_records(
        here.database, user(), RecordFilter(), oldest_first=True, page_size=10, page_token=""
    )
    told = [(each.entry.decision, each.entry.reason) for each in page[1:]]
    assert told == [(Decision.ALLOWED, ""), (Decision.DENIED, "CONNECTION_NEEDS_REAUTH")]


async def test_a_tool_for_another_provider_gets_nothing_of_a_remembered_connection(
    world: World, reads: Reads
) -> None:
    made = await world.connect(user())
    await lease(world, made.connection_id)

    with pytest.raises(ServiceError) as caught:
        await lease(world, made.connection_id, providers=("bluesky", "twitter"))

    assert caught.value.reason == "PROVIDER_MISMATCH"
    assert await lease(world, made.connection_id, providers=("bluesky", "scripted")) == "1"
    page, _, _ = await list_records(
        world.database, user(), RecordFilter(), oldest_first=True, page_size=10, page_token=""
    )
    told = [(each.entry.decision, each.entry.reason) for each in page[1:]]
    assert told == [
        (Decision.ALLOWED, ""),
        (Decision.FAILED, "PROVIDER_MISMATCH"),
        (Decision.ALLOWED, ""),
    ]
    assert [bool(each.entry.lease_id) for each in page[1:]] == [True, False, True]


class Cut:
    """Mints a token for each wish, and notes what it was asked."""

    def __init__(self) -> None:
        self.wishes: list[LeaseWish] = []

    async def narrow(
        self, material: Material, wish: LeaseWish, http: Http, now: datetime
    ) -> Session:
        self.wishes.append(wish)
        values = {"access_token": f"{CANARY}-cut-{wish.resources[0]}"}
        return Session(values=values, expire_time=now + timedelta(minutes=3))


async def test_leases_of_a_remembered_connection_are_cut_down_each_to_its_own_wish(
    database: DatabaseFactory, key_ring: KeyRing, reads: Reads
) -> None:
    cut = Cut()
    world = make_world(await database("connections"), key_ring, narrow=cut.narrow)
    made = await world.connect(user())
    assert await lease(world, made.connection_id) == "1"

    one, two = (LeaseWish(resources=(name,)) for name in ("one", "two"))
    got = [await lease(world, made.connection_id, wish=wish) for wish in (one, two, one)]
    short = await world.leases.lease(
        runner(made.connection_id), lease_wanted(made.connection_id, wish=one)
    )

    assert got == ["one", "two", "one"]
    assert (cut.wishes, reads.count) == ([one, two], 3), "read before each cut, and only then"
    assert await lease(world, made.connection_id) == "1", "and whole where nothing was asked"
    assert short.expire_time - made.create_time < timedelta(minutes=4), "no longer than the cut one"


async def test_nothing_is_cut_for_a_connection_that_died_since(
    database: DatabaseFactory, key_ring: KeyRing
) -> None:
    cut = Cut()
    here = make_world(await database("connections"), key_ring, narrow=cut.narrow)
    made = await here.connect(user())
    await lease(here, made.connection_id)
    async with here.database.tenant("t1") as tx:
        await connections.change_state(tx, "t1", made.connection_id, State.REVOKED)

    with pytest.raises(ServiceError) as caught:
        await lease(here, made.connection_id, wish=LeaseWish(resources=("one",)))

    assert (caught.value.reason, cut.wishes) == ("CONNECTION_REVOKED", [])


async def test_a_lease_that_waits_for_a_revocation_sees_it(world: World) -> None:
    made = await world.connect(user())
    await lease(world, made.connection_id)

    async with world.database.tenant("t1") as tx:
        head = await access_log.lock_head(tx, "t1")
        asking = asyncio.create_task(lease(world, made.connection_id))
        await blocks_somebody(tx)
        await leases.revoke_grant(tx, "t1", "grant-1", head.now + timedelta(days=1))

    with pytest.raises(ServiceError) as caught:
        await asking
    assert caught.value.reason == "GRANT_REVOKED"


async def blocks_somebody(tx: Any) -> None:
    """Wait until another transaction waits for this one."""
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted "
        "AND pg_backend_pid() = ANY (pg_blocking_pids(pid))"
    )
    async with asyncio.timeout(30):
        while not (await tx.execute(waiting)).scalar_one():
            continue


async def test_sql_and_python_write_the_same_canonical_json(world: World) -> None:
    made = await world.connect(user("ann"))
    strange = 'q"b\\s/\b\f\n\r\t\x01\x1f\x7f \u00e9\u2028\u2029\U0001f600</script>'
    caller = on_behalf_of("ann", runner(made.connection_id, run_id=strange, grant_id=strange))
    wish = LeaseWish(resources=(strange, "b"))
    wanted = lease_wanted(made.connection_id, tool=strange, invocation_id=strange, wish=wish)
    await world.leases.lease(caller, wanted)
    page, _, head = await list_records(
        world.database, user(), RecordFilter(), oldest_first=True, page_size=10, page_token=""
    )
    assert page[-1].entry.tool == strange
    assert page[-1].entry.details["resources"] == f"{strange} b"
    assert first_break(page) is None
    assert (head.sequence, head.hash) == (page[-1].sequence, page[-1].hash)
