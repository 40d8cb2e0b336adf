"""A credential that was used is nowhere: in no table, log, event or broker key in plain text."""

from __future__ import annotations

import asyncpg
import redis.asyncio

from cogni.client import AsyncClient
from services.standalone.demo import tenant
from tests.e2e.conftest import World
from tests.e2e.waiting import bill, whole_log

COLUMNS = """
SELECT table_schema, table_name, column_name, data_type FROM information_schema.columns
JOIN information_schema.tables USING (table_schema, table_name)
WHERE table_schema IN ('executor', 'scheduler', 'connections', 'ledger', 'public')
    AND table_type = 'BASE TABLE'
ORDER BY 1, 2, 3
"""


async def _tables(url: str) -> dict[str, bytes]:
    """Everything in every table, as the superuser sees it: a blob per column."""
    connection = await asyncpg.connect(url)
    try:
        found = {}
        for schema, table, column, kind in await connection.fetch(COLUMNS):
            as_bytes = (
                f'"{column}"' if kind == "bytea" else f"convert_to(\"{column}\"::text, 'UTF8')"
            )
            blob = await connection.fetchval(
                f"SELECT string_agg({as_bytes}, decode('0a', 'hex')) FROM {schema}.{table}"
            )
            found[f"{schema}.{table}.{column}"] = blob or b""
        return found
    finally:
        await connection.close()


async def _broker(url: str) -> bytes:
    """Every key with its value."""
    async with redis.asyncio.from_url(url) as client:
        read = {
            b"string": lambda key: client.get(key),
            b"list": lambda key: client.lrange(key, 0, -1),
            b"hash": lambda key: client.hgetall(key),
            b"set": lambda key: client.smembers(key),
            b"zset": lambda key: client.zrange(key, 0, -1),
        }
        found = b""
        async for key in client.scan_iter():
            # A key that is gone by now has no type.
            kind = await client.type(key)
            if kind != b"none":
                found += key + repr(await read[kind](key)).encode()
        return found


def _containing(secrets: list[str], blobs: dict[str, bytes]) -> list[str]:
    forms = [
        form for secret in secrets for form in (secret.encode(), secret.encode().hex().encode())
    ]
    return [name for name, blob in blobs.items() if any(form in blob for form in forms)]


async def test_a_used_credential_is_in_no_table_log_event_or_broker_key(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run = await client.start_run(tenant.GRAPH, grant_id, {"source": str(world.feed)})
    events = await whole_log(client, run.run_id)
    await bill(client, run.run_id, units=1)
    # The password, and every session that was made with it: all that could have leaked.
    secrets = [world.bluesky.app_password, *world.sessions]

    tables = await _tables(world.stack.database_url)
    logs = {path.name: path.read_bytes() for path in world.stack.logs.iterdir()}
    log = {"events": b"".join(event.SerializeToString() for event in events)}
    keys = {"redis": await _broker(world.stack.broker_url)}

    # What is looked through is what was used: the run is in it.
    assert run.run_id.encode() in tables["executor.runs.run_id"]
    assert any(name.startswith("connections.") and blob for name, blob in tables.items())
    assert logs["connections.log"]
    assert any(event.tool_finished.tool == tenant.POST_TOOL for event in events)
    assert _containing(secrets, tables) == []
    assert _containing(secrets, logs) == []
    assert _containing(secrets, log) == []
    assert _containing(secrets, keys) == []
