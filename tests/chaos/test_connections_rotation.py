"""A key rotation is killed again and again while leases go on: every row moves, each once."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import signal
from datetime import timedelta

from services.connections.key_rotation import RotationState
from services.connections.keyring import KeyRing
from services.connections.secret import AuthKind, Secret
from services.connections.use_cases.key_rotation import KeyRotations
from services.connections.vault import Binding, seal
from services.runtime.caller import Caller, CallerKind
from services.runtime.database import Database
from services.runtime.ids import new_id
from tests.connections.conftest import World, lease_wanted, make_world, runner
from tests.databases import DatabaseFactory

LONG = bool(os.environ.get("LONG"))
SEED = int(os.environ.get("SEED") or random.SystemRandom().randrange(2**32))
ROWS = 100_000 if LONG else 10_000
KILLS = 20 if LONG else 5
DONE_WITHIN = timedelta(minutes=10)
OLD, NEW = bytes(range(32)), bytes(range(1, 33))
BOTH = KeyRing("k2", {"k1": OLD, "k2": NEW})
ADMIN = Caller(CallerKind.USER, "ann", "t1", frozenset({"connections:admin"}))

_CONNECTIONS = """
INSERT INTO connections (tenant_id, connection_id, provider, auth_kind, display_name, labels,
    settings, owner, state)
SELECT 't1', id, 'api_key', 'API_KEY', '', '{}',
    '{"allowed_origins": ["https://api.example.com"]}', 'ann', 'ACTIVE'
FROM unnest($1::uuid[]) AS id
"""
_SECRETS = """
INSERT INTO credentials (tenant_id, connection_id, kind, provider, generation, key_id, wrapped_key,
    nonce, ciphertext, commitment)
SELECT 't1', u.id, 'secret', 'api_key', 1, 'k1', u.wrapped, u.nonce, u.sealed, u.commitment
FROM unnest($1::uuid[], $2::bytea[], $3::bytea[], $4::bytea[], $5::bytea[])
    AS u (id, wrapped, nonce, sealed, commitment)
"""


async def fill(db: Database) -> list[str]:
    """Connections by the many, each with a secret under the old key; their ids."""
    ring = KeyRing("k1", {"k1": OLD})
    secret = Secret(AuthKind.API_KEY, {"key": "k" * 40}).to_bytes()
    ids = [new_id() for _ in range(ROWS)]
    sealed = [await seal(secret, Binding("t1", id, "api_key", "secret", 1), ring) for id in ids]
    async with db.raw_tenant("t1") as tx:
        await tx.execute(_CONNECTIONS, ids)
        await tx.execute(
            _SECRETS,
            ids,
            [each.wrapped_key for each in sealed],
            [each.nonce for each in sealed],
            [each.ciphertext for each in sealed],
            [each.commitment for each in sealed],
        )
    return ids


def rotate(url: str) -> None:
    """What a server's loop does, in a process of its own."""

    async def live() -> None:
        rotations = KeyRotations(Database.open(url, "connections"), BOTH)
        # A step does nothing while a killed process's transaction is still being undone.
        while (await rotations.get(ADMIN, "")).state is RotationState.RUNNING:
            await rotations.step()

    asyncio.run(live())


async def rotated(rotations: KeyRotations) -> int:
    return (await rotations.get(ADMIN, "")).rotated_rows


async def lease_on(world: World, ids: list[str], until: asyncio.Task[None]) -> int:
    """Lease one connection after the other; a refusal ends the test. How many were given."""
    given = 0
    while not until.done():
        connection_id = ids[given * 37 % len(ids)]
        wanted = lease_wanted(connection_id, invocation_id=new_id())
        await world.leases.lease(runner(connection_id), wanted)
        given += 1
    return given


async def kill_and_go_on(url: str, rotations: KeyRotations) -> None:
    """Run the rotation in one process after another, each killed somewhere in its work."""
    chance = random.Random(SEED)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    for number in range(KILLS + 1):
        before = await rotated(rotations)
        process = context.Process(target=rotate, args=(url,), daemon=True)
        process.start()
        # It is at work; the last one is left alone.
        while process.is_alive() and await rotated(rotations) == before:
            continue
        if number < KILLS:
            await asyncio.sleep(chance.random() * 0.05)
            assert process.pid is not None
            os.kill(process.pid, signal.SIGKILL)
        await asyncio.to_thread(process.join)
        print(f"SEED={SEED}: {await rotated(rotations)} rows after process {number}")


async def test_a_rotation_killed_again_and_again_moves_every_row_once_while_leases_go_on(
    database: DatabaseFactory,
) -> None:
    db = await database("connections")
    ids = await fill(db)
    rotations = KeyRotations(db, BOTH)
    begun = await rotations.begin(ADMIN, new_id(), "")
    assert begun.total_rows == ROWS

    async with asyncio.timeout(DONE_WITHIN.total_seconds()):
        killing = asyncio.create_task(kill_and_go_on(db.url, rotations))
        given = await lease_on(make_world(db, BOTH), ids, killing)
        await killing

    done = await rotations.get(ADMIN, begun.rotation_id)
    assert (done.state, done.rotated_rows, done.failed_rows) == (RotationState.SUCCEEDED, ROWS, 0)
    assert given > 0
    # The old key has left the ring: every row opens with the new one alone.
    after = make_world(db, KeyRing("k2", {"k2": NEW}))
    for connection_id in ids[:: ROWS // 200]:
        wanted = lease_wanted(connection_id, invocation_id=new_id())
        await after.leases.lease(runner(connection_id), wanted)
    async with db.raw_tenant("t1") as tx:
        assert not await tx.fetchval("SELECT count(*) FROM credentials WHERE key_id <> 'k2'")
