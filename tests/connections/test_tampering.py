"""Whoever changes stored credentials behind our back gets an error, a record, and no credential."""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from services.connections.access_log import RecordFilter
from services.connections.connection import Connection, State
from services.connections.keyring import KeyRing
from services.connections.store import access_log
from services.connections.store.credentials import stored_credential
from services.connections.use_cases.key_rotation import KeyRotations
from services.connections.vault import rewrap
from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from tests.connections.conftest import (
    CANARY,
    World,
    create_wanted,
    lease_wanted,
    make_world,
    runner,
    user,
)
from tests.databases import Clock, DatabaseFactory

OLD, NEW = os.urandom(32), os.urandom(32)
BLOBS = ("wrapped_key", "nonce", "ciphertext", "commitment")
SEALED = ("key_id", *BLOBS)
#: The database outlives an example: each puts back what it changed.
SHARED = settings(max_examples=50, suppress_health_check=list(HealthCheck))


@dataclass
class Vandal:
    """Somebody who can write into the table, as its owner could."""

    world: World
    admin: asyncpg.Connection
    mine: Connection
    neighbour: Connection
    stranger: Connection

    async def row(self, of: Connection, kind: str) -> dict[str, Any]:
        found = await self.admin.fetchrow(
            "SELECT * FROM credentials WHERE connection_id = $1 AND kind = $2",
            *(of.connection_id, kind),
        )
        return dict(found)

    async def write(self, of: Connection, kind: str, **values: Any) -> None:
        columns = ", ".join(f'"{name}" = ${n}' for n, name in enumerate(values, 3))
        await self.admin.execute(
            f"UPDATE credentials SET {columns} WHERE connection_id = $1 AND kind = $2",
            *(of.connection_id, kind, *values.values()),
        )

    async def refusal(self) -> str:
        """Why a lease of ours is refused, having seen that the refusal was recorded."""
        asked = new_id()
        wanted = lease_wanted(self.mine.connection_id, invocation_id=asked)
        try:
            lease = await self.world.leases.lease(runner(self.mine.connection_id), wanted)
        except ServiceError as error:
            refusal = error
        else:
            return f"leased {lease.credential}"
        assert CANARY not in refusal.message
        async with self.world.database.tenant("t1") as tx:
            (record,) = await access_log.read_records(
                *(tx, "t1", RecordFilter()), after_sequence=None, oldest_first=False, limit=1
            )
        assert (record.entry.invocation_id, record.entry.reason) == (asked, refusal.reason)
        assert record.entry.decision == "FAILED"
        return refusal.reason


@pytest.fixture
async def vandal(database: DatabaseFactory, postgres: str) -> AsyncIterator[Vandal]:
    world = make_world(await database("connections"), KeyRing("k1", {"k1": OLD}))
    mine = await world.connect(user())
    neighbour = await world.connect(user("eve"), request_id=create_wanted().request_id)
    stranger = await world.connect(user(tenant_id="t2"))
    # A neighbour that has been renewed, so that generations differ too.
    await world.renewals.renew("t1", neighbour.connection_id, 1)
    name = world.database.url.rpartition("/")[2]
    admin = await asyncpg.connect(f"{postgres.rpartition('/')[0]}/{name}")
    await admin.execute("SET search_path = connections")
    yield Vandal(world, admin, mine, neighbour, stranger)
    await admin.close()


async def test_no_changed_row_leases_anything(
    vandal: Vandal, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)
    homes = {kind: await vandal.row(vandal.mine, kind) for kind in ("secret", "session")}
    tried = 0
    for kind, home in homes.items():
        other = homes["session" if kind == "secret" else "secret"]
        foreign = [await vandal.row(each, kind) for each in (vandal.neighbour, vandal.stranger)]
        changes: list[dict[str, Any]] = [
            {"key_id": "k2"},
            {"key_id": ""},
            {"generation": home["generation"] + 1},
            {"generation": 0},
            {"provider": "bluesky"},
            *({name: b""} for name in BLOBS),
            *({name: home[name][:-1]} for name in BLOBS),
            *({name: home[name] + b"\0"} for name in BLOBS),
            *({name: row[name]} for name in BLOBS for row in (*foreign, other)),
            # Whole envelopes, moved: from a neighbour, a stranger, and the other kind.
            *({name: row[name] for name in SEALED} for row in (*foreign, other)),
            *({name: row[name] for name in (*SEALED, "generation")} for row in foreign),
        ]
        for change in changes:
            await vandal.write(vandal.mine, kind, **change)
            assert await vandal.refusal() == "CREDENTIAL_UNREADABLE", (kind, change.keys())
            await vandal.write(vandal.mine, kind, **{name: home[name] for name in change})
            tried += 1

    assert (await vandal.refusal()).startswith("leased"), "put back, it opens again"
    assert tried == len([each for each in caplog.messages if "cannot be read" in each])
    assert vandal.mine.connection_id in caplog.text
    assert CANARY not in caplog.text
    found = await vandal.world.connections.get(user(), vandal.mine.connection_id)
    assert found.state is State.ACTIVE, "whoever damaged the row may have to mend it, not the owner"


@given(st.sampled_from(["secret", "session"]), st.sampled_from(BLOBS), st.integers(0, 10**6))
@SHARED
async def test_no_flipped_bit_of_any_stored_column_leases_anything(
    vandal: Vandal, kind: str, column: str, bit: int
) -> None:
    home = (await vandal.row(vandal.mine, kind))[column]
    blob = bytearray(home)
    bit %= len(blob) * 8
    blob[bit // 8] ^= 1 << (bit % 8)
    await vandal.write(vandal.mine, kind, **{column: bytes(blob)})
    assert await vandal.refusal() == "CREDENTIAL_UNREADABLE"
    await vandal.write(vandal.mine, kind, **{column: home})


async def test_half_a_rotation_opens_with_both_keys_and_fails_closed_without_the_old_one(
    vandal: Vandal,
) -> None:
    db = vandal.world.database
    both = KeyRing("k2", {"k1": OLD, "k2": NEW})
    rotations = KeyRotations(db, both)
    await rotations.begin(user(scopes=("connections:admin",)), new_id(), "")
    while await rotations.step():
        pass
    # A crash half-way: the session is under the new key, the secret still under the old one.
    await _put_back(vandal)
    assert {(await vandal.row(vandal.mine, kind))["key_id"] for kind in ("secret", "session")} == {
        "k1",
        "k2",
    }

    for ring, opens in (
        (both, True),
        (KeyRing("k1", {"k1": OLD, "k2": NEW}), True),
        (KeyRing("k2", {"k2": NEW}), False),
        (KeyRing("k1", {"k1": OLD}), False),
        (KeyRing("k2", {"k1": NEW, "k2": OLD}), False),
        (KeyRing("k2", {"k1": OLD, "k2": os.urandom(32)}), False),
    ):
        vandal.world = make_world(db, ring)
        refusal = await vandal.refusal()
        assert refusal.startswith("leased") if opens else refusal == "CREDENTIAL_UNREADABLE", ring


async def _put_back(vandal: Vandal) -> None:
    """Wrap the secret's data key by the old key again, as before the pass came by."""
    row = stored_credential(
        {**await vandal.row(vandal.mine, "secret"), "connection_id": vandal.mine.connection_id}
    )
    both = KeyRing("k1", {"k1": OLD, "k2": NEW})
    back = await rewrap(row.envelope, row.binding, both)
    await vandal.write(vandal.mine, "secret", key_id=back.key_id, wrapped_key=back.wrapped_key)


async def test_what_cannot_be_read_is_set_aside_recorded_once_and_holds_nobody_up(
    vandal: Vandal, clock: Clock
) -> None:
    world, mine = vandal.world, vandal.mine
    await vandal.write(mine, "session", ciphertext=os.urandom(60))
    await clock.advance(world.database, timedelta(hours=2))
    before = world.sessions.renewed

    for _ in range(3):
        await world.renewals.renew_due()

    assert world.sessions.renewed == before + 2, "the neighbour and the stranger, once each"
    async with world.database.tenant("t1") as tx:
        records = await access_log.read_records(
            *(tx, "t1", RecordFilter(connection_id=mine.connection_id)),
            after_sequence=None,
            oldest_first=False,
            limit=10,
        )
    assert [each.entry.reason for each in records].count("CREDENTIAL_UNREADABLE") == 1
    assert await vandal.refusal() == "CREDENTIAL_UNREADABLE"
