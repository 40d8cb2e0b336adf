"""A credential that was used is nowhere: in no table, log, span, event, broker key or process."""

from __future__ import annotations

import os

import pytest

from cogni.client import AsyncClient
from services.standalone.demo import tenant
from tests.canaries import broker, containing, holding_in_memory, tables
from tests.e2e.waiting import bill, whole_log
from tests.e2e.world import World

#: Every process that never leases a credential, by words of its command line.
OTHERS = (
    "-m services.executor",
    "-m services.scheduler",
    "-m services.scheduler clock",
    "services.scheduler.worker",
    "-m services.ledger",
)


async def test_a_used_credential_is_in_no_table_log_event_span_or_broker_key(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run = await client.start_run(tenant.GRAPH, grant_id, {"source": str(world.feed)})
    events = await whole_log(client, run.run_id)
    await bill(client, run.run_id, units=1)
    # The password, and every session that was made with it: all that could have leaked.
    secrets = [world.bluesky.app_password, *world.sessions]

    stored = await tables(world.stack.database_url)
    logs = {path.name: path.read_bytes() for path in world.stack.logs.iterdir()}
    told = {
        "events": b"".join(event.SerializeToString() for event in events),
        "spans": b"".join(seen.span.SerializeToString() for seen in world.collector.all()),
    }
    keys = {"redis": await broker(world.stack.broker_url)}

    # What is looked through is what was used: the run is in it.
    assert run.run_id.encode() in stored["executor.runs.run_id"]
    assert any(name.startswith("executor.checkpoint") and blob for name, blob in stored.items())
    assert any(name.startswith("connections.") and blob for name, blob in stored.items())
    assert logs["connections.log"]
    assert told["spans"]
    assert any(event.tool_finished.tool == tenant.POST_TOOL for event in events)
    assert containing(secrets, stored) == []
    assert containing(secrets, logs) == []
    assert containing(secrets, told) == []
    assert containing(secrets, keys) == []


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may look into other processes' memory")
async def test_a_used_credential_is_in_the_memory_of_no_process_that_leases_none(
    world: World, client: AsyncClient, grant_id: str
) -> None:
    run = await client.start_run(tenant.GRAPH, grant_id, {"source": str(world.feed)})
    await whole_log(client, run.run_id)
    # A token's last part alone decides what it can do, however the rest is written.
    signatures = [token.rpartition(".")[2] for token in world.sessions]
    # In the environment of each process: that it is found shows that memory is looked through.
    control = "COGNI_"

    for words in OTHERS:
        pids = world.stack.pids(words)
        assert pids, words
        for pid in pids:
            held = holding_in_memory(pid, [control, world.bluesky.app_password, *signatures])
            assert held == [control], words
