"""Key rotation: every row moves under the new key while leases go on, and a damaged row is told."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace

import pytest

from services.connections.access_log import Record, RecordFilter
from services.connections.key_rotation import KeyRotation, RotationState
from services.connections.keyring import KeyRing
from services.connections.store import access_log, key_rotations
from services.connections.use_cases import key_rotation
from services.connections.use_cases.key_rotation import KeyRotations
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.ids import new_id
from tests.connections.conftest import create_wanted, lease_wanted, make_world, runner, user
from tests.databases import DatabaseFactory

OLD, NEW = os.urandom(32), os.urandom(32)
OLD_RING = KeyRing("k1", {"k1": OLD})
BOTH = KeyRing("k2", {"k1": OLD, "k2": NEW})
NEW_RING = KeyRing("k2", {"k2": NEW})
ADMIN = replace(user(), scopes=frozenset({"connections:admin"}))


@pytest.fixture
async def db(database: DatabaseFactory) -> Database:
    return await database("connections")


async def work(rotations: KeyRotations) -> None:
    while await rotations.step():
        pass


async def rotate(db: Database, ring: KeyRing = BOTH, caller: Caller = ADMIN) -> KeyRotation:
    rotations = KeyRotations(db, ring)
    begun = await rotations.begin(caller, new_id(), "")
    await work(rotations)
    return await rotations.get(caller, begun.rotation_id)


async def test_after_a_rotation_the_old_key_can_leave_the_ring(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_rotations, "BATCH_ROWS", 3)
    before = make_world(db, OLD_RING)
    made = [await before.connect(user(tenant_id=f"t{number % 3}")) for number in range(5)]

    done = await rotate(db)

    assert (done.state, done.total_rows, done.rotated_rows, done.failed_rows) == (
        RotationState.SUCCEEDED,
        10,
        10,
        0,
    )
    after = make_world(db, NEW_RING)
    for each in made:
        caller = runner(each.connection_id, tenant_id=each.tenant_id)
        assert await after.leases.lease(caller, lease_wanted(each.connection_id))


async def test_a_rotation_that_stopped_half_way_goes_on_in_another_process(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_rotations, "BATCH_ROWS", 2)
    world = make_world(db, OLD_RING)
    for _ in range(3):
        await world.connect(user())
    first, second = KeyRotations(db, BOTH), KeyRotations(db, BOTH)
    begun = await first.begin(ADMIN, new_id(), "")
    await first.step()
    half_way = await second.get(ADMIN, begun.rotation_id)
    assert (half_way.state, half_way.rotated_rows) == (RotationState.RUNNING, 2)

    await work(second)

    assert (await second.get(ADMIN, "")).state is RotationState.SUCCEEDED
    assert (await second.get(ADMIN, "")).rotated_rows == 6


async def test_a_slow_key_service_gets_as_many_rows_as_a_transaction_may_wait_for(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_rotation, "BATCH_SECONDS_MAX", 0.0)
    world = make_world(db, OLD_RING)
    for _ in range(2):
        await world.connect(user())
    rotations = KeyRotations(db, BOTH)
    await rotations.begin(ADMIN, new_id(), "")

    await rotations.step()
    assert (await rotations.get(ADMIN, "")).rotated_rows == 1

    await work(rotations)
    done = await rotations.get(ADMIN, "")
    assert (done.state, done.rotated_rows) == (RotationState.SUCCEEDED, 4)


async def test_leases_are_given_all_through_a_rotation(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_rotations, "BATCH_ROWS", 1)
    world = make_world(db, OLD_RING)
    made = [await world.connect(user()) for _ in range(10)]
    serving = make_world(db, BOTH)
    rotations = KeyRotations(db, BOTH)
    await rotations.begin(ADMIN, new_id(), "")
    rotating = asyncio.create_task(work(rotations))
    given = 0
    while not rotating.done():
        for each in made:
            wanted = lease_wanted(each.connection_id, invocation_id=new_id())
            await serving.leases.lease(runner(each.connection_id), wanted)
            given += 1
    await rotating
    assert given > 0
    assert (await rotations.get(ADMIN, "")).state is RotationState.SUCCEEDED


async def test_rows_written_behind_the_pass_by_an_older_ring_are_found(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(key_rotations, "BATCH_ROWS", 2)
    old = make_world(db, OLD_RING)
    await old.connect(user(tenant_id="t9"))
    rotations = KeyRotations(db, BOTH)
    await rotations.begin(ADMIN, new_id(), "")
    await rotations.step()
    await old.connect(user(tenant_id="t1"))

    await work(rotations)

    done = await rotations.get(ADMIN, "")
    assert (done.state, done.rotated_rows) == (RotationState.SUCCEEDED, 4)


async def test_a_damaged_row_fails_the_rotation_and_stays_as_it_is(db: Database) -> None:
    world = make_world(db, OLD_RING)
    made = await world.connect(user())
    await world.connect(user())
    async with db.raw_tenant("t1") as connection:
        await connection.execute(
            "UPDATE credentials SET wrapped_key = $1 WHERE connection_id = $2 AND kind = 'secret'",
            os.urandom(60),
            made.connection_id,
        )

    done = await rotate(db)

    assert (done.state, done.rotated_rows, done.failed_rows) == (RotationState.FAILED, 3, 1)


async def test_the_beginning_and_the_end_of_a_rotation_are_on_record_with_them(
    db: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    await make_world(db, OLD_RING).connect(user())
    rotations = KeyRotations(db, BOTH)
    with monkeypatch.context() as broken:
        broken.setattr(access_log, "append", unable)
        with pytest.raises(ServiceError, match="no room"):
            await rotations.begin(ADMIN, new_id(), "")
    with pytest.raises(ServiceError, match="No keys"):
        await rotations.get(ADMIN, "")
    await rotations.begin(ADMIN, new_id(), "")
    with monkeypatch.context() as broken:
        broken.setattr(access_log, "append", unable)
        with pytest.raises(ServiceError, match="no room"):
            await work(rotations)
    assert (await rotations.get(ADMIN, "")).state is RotationState.RUNNING
    await work(rotations)
    done = await rotations.get(ADMIN, "")

    begun, ended = await rotation_records(db)
    told = {"rotation_id": done.rotation_id, "key_id": "k2"}
    assert (begun.entry.actor, begun.entry.details) == ("user:ann", told)
    assert ended.entry.details == told | {"state": "SUCCEEDED", "rotated": "2", "failed": "0"}
    assert done.state is RotationState.SUCCEEDED


async def unable(*arguments: object) -> None:
    raise ServiceError(ErrorKind.UNAVAILABLE, "UNAVAILABLE", "no room")


async def test_a_second_request_finds_the_pass_under_way(db: Database) -> None:
    await make_world(db, OLD_RING).connect(user())
    rotations = KeyRotations(db, BOTH)
    first = await rotations.begin(ADMIN, new_id(), "")
    second = await rotations.begin(ADMIN, new_id(), "k2")
    assert second.rotation_id == first.rotation_id


async def test_a_repeated_request_finds_its_pass_unless_it_names_another_key(db: Database) -> None:
    asked = new_id()
    first = await KeyRotations(db, OLD_RING).begin(ADMIN, asked, "k1")
    await work(KeyRotations(db, OLD_RING))

    again = await KeyRotations(db, BOTH).begin(ADMIN, asked, "")
    with pytest.raises(ServiceError) as caught:
        await KeyRotations(db, BOTH).begin(ADMIN, asked, "k2")

    assert again.rotation_id == first.rotation_id
    assert caught.value.reason == "REQUEST_ID_REUSED"


async def test_a_server_without_the_new_key_leaves_the_work_to_others(db: Database) -> None:
    await make_world(db, OLD_RING).connect(user())
    await KeyRotations(db, BOTH).begin(ADMIN, new_id(), "")
    assert await KeyRotations(db, OLD_RING).step() is False


async def test_only_the_operators_tenant_and_the_active_key_are_taken_and_others_go_on_record(
    db: Database,
) -> None:
    for rotations, key_id, reason in (
        (KeyRotations(db, OLD_RING), "k2", "KEY_UNKNOWN"),
        (KeyRotations(db, BOTH, operator_tenant="ops"), "", "CALLER_NOT_ALLOWED"),
    ):
        with pytest.raises(ServiceError) as caught:
            await rotations.begin(ADMIN, new_id(), key_id)
        assert caught.value.reason == reason

    told = [each.entry for each in await rotation_records(db)]
    assert [(each.actor, each.decision, each.reason, dict(each.details)) for each in told] == [
        ("user:ann", "DENIED", "KEY_UNKNOWN", {"key_id": "k2"}),
        ("user:ann", "DENIED", "CALLER_NOT_ALLOWED", {}),
    ]


async def rotation_records(db: Database) -> list[Record]:
    wanted = RecordFilter(action="ROTATE_KEYS")
    async with db.tenant("t1") as tx:
        return await access_log.read_records(
            tx, "t1", wanted, after_sequence=None, oldest_first=True, limit=9
        )


async def test_a_row_moved_to_another_connection_opens_nothing(db: Database) -> None:
    world = make_world(db, OLD_RING)
    mine = await world.connect(user())
    other = await world.connect(user("eve"), request_id=create_wanted().request_id)
    async with db.raw_tenant("t1") as connection:
        await connection.execute(
            "UPDATE credentials AS mine SET ciphertext = other.ciphertext, nonce = other.nonce, "
            "wrapped_key = other.wrapped_key, commitment = other.commitment "
            "FROM credentials AS other WHERE mine.kind = other.kind "
            "AND mine.connection_id = $1 AND other.connection_id = $2",
            mine.connection_id,
            other.connection_id,
        )
    with pytest.raises(ServiceError) as caught:
        await world.leases.lease(runner(mine.connection_id), lease_wanted(mine.connection_id))
    assert caught.value.reason == "CREDENTIAL_UNREADABLE"
