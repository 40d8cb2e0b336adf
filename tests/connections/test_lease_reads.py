"""A lease costs the same however many connections its tenant has."""

from __future__ import annotations

from datetime import timedelta
from typing import cast

import asyncpg

from services.connections.store import lease_batches
from services.connections.store.lease_batches import Asked
from services.runtime.ids import new_id
from services.runtime.lane import Lane
from services.runtime.roles import Roles
from tests.connections.conftest import World, lease_wanted, runner, user
from tests.databases import Databases

NEIGHBOURS = 3000
BATCH = 10
# Its connection and consent, and its secret and session for more than one reason.
ROWS_PER_LEASE_MAX = 10

_NEIGHBOURS = """
WITH made AS (
    INSERT INTO connections (tenant_id, connection_id, provider, auth_kind, display_name, labels,
        settings, owner, state)
    SELECT tenant_id, gen_random_uuid(), provider, auth_kind, display_name, labels, settings,
        owner, state
    FROM connections, generate_series(1, $1) RETURNING tenant_id, connection_id
)
INSERT INTO consents (tenant_id, connection_id, subject)
SELECT tenant_id, connection_id, 'bob' FROM made
"""
_READ = """
SELECT relname, seq_tup_read + coalesce(idx_tup_fetch, 0) FROM pg_stat_xact_user_tables
WHERE schemaname = 'connections' AND relname IN ('connections', 'consents', 'credentials')
"""


async def test_a_lease_reads_no_other_connection_of_its_tenant(
    world: World, databases: Databases
) -> None:
    made = await world.connect(user("ann"), consent_subjects=("bob",))
    admin = await asyncpg.connect(
        databases.admin_url(world.database.url), server_settings={"search_path": "connections"}
    )
    try:
        # Without triggers, whose events nobody waits for.
        await admin.execute("SET session_replication_role = replica")
        await admin.execute(_NEIGHBOURS.replace("$1", str(NEIGHBOURS)))
        # Only then does the planner know how many there are, and what a join would cost.
        await admin.execute("ANALYZE connections, consents, credentials")
        await admin.execute(f'SET ROLE "{Roles.of("connections").app}"')
        async with admin.transaction():
            caller = runner(made.connection_id)
            assert caller.run is not None
            wanted = [
                Asked(
                    caller.run,
                    lease_wanted(made.connection_id, invocation_id=new_id()),
                    end_by=None,
                    life=timedelta(0),
                    version="as of long ago",
                    actor="run:run-1",
                    on_behalf_of="bob",
                    details={},
                )
                for _ in range(BATCH)
            ]
            # A lane is a connection that asks by fetchrow, too.
            decided = await lease_batches.give(cast(Lane, admin), "t1", wanted)
            read = dict(await admin.fetch(_READ))
    finally:
        await admin.close()

    assert [each.outcome for each in decided] == ["STALE"] * BATCH
    assert read["consents"] > 0
    assert all(rows <= BATCH * ROWS_PER_LEASE_MAX for rows in read.values()), read
