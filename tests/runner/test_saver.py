"""The checkpoint saver: LangGraph's own conformance suite, and the tenant's wall."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from datetime import timedelta
from typing import Any

import pytest

from services.executor.runner.journal import Holding, Journal, LeaseLostError
from services.executor.runner.saver import Saver
from services.executor.store import leases
from services.executor.store.leases import LeaseTimes
from tests.runner.fleet import Fleet

TIMES = LeaseTimes(timedelta(seconds=60), timedelta(seconds=1), timedelta(seconds=60), 3)


async def _holding(fleet: Fleet) -> Holding:
    run_id = await fleet.start("any")
    async with fleet.database.raw_jobs() as tx:
        (claim,) = await leases.claim_ready(tx, "h1", 1, TIMES)
    return Holding(run_id, claim.run.tenant_id, claim.epoch, claim.run.attempt)


async def test_the_saver_conforms(fleet: Fleet, journal: Journal) -> None:
    initializer = pytest.importorskip("langgraph.checkpoint.conformance.initializer")
    validate = pytest.importorskip("langgraph.checkpoint.conformance.validate")
    holding = await _holding(fleet)

    async def factory() -> AsyncGenerator[Any, None]:
        for table in ("checkpoint_writes", "checkpoint_blobs", "checkpoints"):
            await fleet.execute(f"DELETE FROM {table}")
        yield Saver(fleet.database, journal, holding)

    registered = initializer.RegisteredCheckpointer(name="Saver", factory=factory)
    report = await validate.validate(registered)

    failures = {name: result.failures for name, result in report.results.items() if result.failures}
    assert failures == {}
    assert report.passed_all_base()


async def test_an_attempt_without_its_lease_stores_no_checkpoint(
    fleet: Fleet, journal: Journal
) -> None:
    holding = await _holding(fleet)
    saver = Saver(fleet.database, journal, holding)
    await fleet.execute("UPDATE run_leases SET epoch = epoch + 1")
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    checkpoint: Any = {
        "v": 4,
        "id": "1",
        "ts": "",
        "channel_values": {},
        "channel_versions": {},
        "versions_seen": {},
    }

    with pytest.raises(LeaseLostError):
        await saver.aput(config, checkpoint, {"source": "loop", "step": 1}, {})
    with pytest.raises(LeaseLostError):
        await saver.aput_writes(
            {"configurable": {"thread_id": "t", "checkpoint_id": "1"}}, [("a", 1)], "task"
        )

    assert await fleet.rows("SELECT 1 FROM checkpoints") == []
    assert await fleet.rows("SELECT 1 FROM checkpoint_writes") == []


async def test_another_tenants_thread_looks_empty(fleet: Fleet, journal: Journal) -> None:
    holding = await _holding(fleet)
    mine = Saver(fleet.database, journal, holding)
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    checkpoint: Any = {
        "v": 4,
        "id": "1",
        "ts": "",
        "channel_values": {"a": [1]},
        "channel_versions": {"a": "1"},
        "versions_seen": {},
    }
    await mine.aput(config, checkpoint, {"source": "loop", "step": 1}, {"a": "1"})

    theirs = Saver(fleet.database, journal, Holding("x", "t2", 1, 1))

    assert (await mine.aget_tuple(config)) is not None
    assert (await theirs.aget_tuple(config)) is None
    assert [each async for each in theirs.alist(None)] == []
