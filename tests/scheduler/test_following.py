"""What the Executor's streams tell is heard once, by one process at a time."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import text

from services.runtime.errors import ServiceError
from services.runtime.ids import new_id
from services.scheduler.schedules import Schedule, ScheduleState, Settings, StateReason
from services.scheduler.slot_records import SlotReason, SlotState
from services.scheduler.store import schedules, streams
from services.scheduler.use_cases import following
from services.scheduler.use_cases.following import LEASE, followers
from tests.scheduler.world import ALICE


async def test_a_revoked_grant_stops_its_schedules_and_what_waits(world: Any) -> None:
    grant_id = world.executor.grant()
    stopped = await world.create(grant_id=grant_id, overlap_policy="OVERLAP_POLICY_BUFFER_ALL")
    other = await world.create({"interval": {"every": "31536000s"}})
    await world.fire(stopped)
    await world.deliver()
    await world.fire(stopped)
    await world.fire(stopped)

    await world.executor.revoke(grant_id)
    await world.hear("grants")

    now_kept = await world.get(stopped)
    assert (now_kept.state, now_kept.state_reason) == (
        ScheduleState.PAUSED,
        StateReason.GRANT_REVOKED,
    )
    first, *rest = await world.slots(stopped)
    assert first.state is SlotState.STARTED
    assert {(slot.state, slot.reason) for slot in rest} == {
        (SlotState.CANCELLED, SlotReason.GRANT_UNUSABLE)
    }
    assert (await world.get(other)).state is ScheduleState.ACTIVE
    await world.deliver()
    assert len(world.executor.runs) == 1


async def test_a_schedule_whose_grant_ended_can_be_renamed_and_given_another(world: Any) -> None:
    grant_id = world.executor.grant()
    schedule = await world.create(grant_id=grant_id)
    await world.executor.revoke(grant_id)
    await world.hear("grants")

    def rename(old: Settings) -> Settings:
        return replace(old, display_name="renamed")

    renamed = await world.schedules.update(ALICE, schedule.schedule_id, "", rename)
    assert renamed.settings.display_name == "renamed"
    with pytest.raises(ServiceError) as refused:
        await world.schedules.unpause(ALICE, schedule.schedule_id, "", None)
    assert refused.value.reason == "GRANT_UNUSABLE"

    another = world.executor.grant()
    await world.schedules.update(
        ALICE,
        schedule.schedule_id,
        "",
        lambda old: replace(old, run=replace(old.run, grant_id=another)),
    )
    unpaused = await world.schedules.unpause(ALICE, schedule.schedule_id, "", None)
    assert unpaused.state is ScheduleState.ACTIVE


async def test_a_revocation_that_comes_before_the_word_of_it_refuses_the_start(world: Any) -> None:
    grant_id = world.executor.grant()
    schedule = await world.create(grant_id=grant_id)
    await world.fire(schedule)
    await world.executor.revoke(grant_id)
    await world.deliver()
    [slot] = await world.slots(schedule)
    assert (slot.state, slot.reason) == (SlotState.REFUSED, SlotReason.GRANT_UNUSABLE)
    assert (await world.get(schedule)).state_reason is StateReason.GRANT_REVOKED


async def test_a_slot_of_a_grant_that_the_schedule_has_left_pauses_it_no_more(world: Any) -> None:
    schedule = await world.create()
    slot = await world.fire(schedule)
    world.executor.down = True
    await world.deliver()
    another = world.executor.grant()
    world.executor.down = False
    await world.schedules.update(
        ALICE,
        schedule.schedule_id,
        "",
        lambda old: replace(old, run=replace(old.run, grant_id=another)),
    )

    await world.executor.revoke(schedule.settings.run.grant_id)
    await world.starter.start(slot.key)

    [slot] = await world.slots(schedule)
    assert (slot.state, slot.reason) == (SlotState.REFUSED, SlotReason.GRANT_UNUSABLE)
    assert (await world.get(schedule)).state is ScheduleState.ACTIVE


async def test_a_schedule_that_is_being_edited_is_not_missed_by_who_waits_for_it(
    world: Any,
) -> None:
    schedule = await world.create()
    another = world.executor.grant()
    edited = replace(schedule.settings, run=replace(schedule.settings.run, grant_id=another))

    async def lock_all() -> list[Schedule]:
        async with world.db.jobs() as tx:
            found: list[Schedule] = await schedules.lock_all(tx, [schedule.schedule_id])
            return found

    async with world.db.jobs() as tx:
        locked = await schedules.get(tx, schedule.schedule_id, lock=True)
        assert locked is not None
        await schedules.update_settings(tx, locked, edited)
        waiting = asyncio.create_task(lock_all())
        await _until_somebody_waits_for(tx)

    [found] = await waiting
    assert found.settings.run.grant_id == another


async def _until_somebody_waits_for(tx: Any) -> None:
    waiting = text(
        "SELECT count(*) FROM pg_locks WHERE NOT granted "
        "AND transactionid = CAST(CAST(pg_current_xact_id() AS text) AS xid)"
    )
    async with asyncio.timeout(30):
        while True:
            if await tx.scalar(waiting):
                return
            await asyncio.sleep(0.01)


async def test_cursor_and_effects_commit_together(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    await world.deliver()
    [slot] = await world.slots(schedule)
    await world.executor.end(slot.run_id)
    usurper = new_id()

    follower = world.followers["runs"]
    cursor = await follower._take()
    batch = await anext(world.client.watch_runs(cursor))
    await world.pass_time(LEASE)
    async with world.db.jobs() as tx:
        assert await streams.take(tx, "runs", usurper, LEASE) == ""
    assert not await follower._handle(batch)

    [unheard] = await world.slots(schedule)
    assert not unheard.run_finished
    async with world.db.jobs() as tx:
        assert await streams.take(tx, "runs", usurper, LEASE) == ""


async def test_a_stream_has_one_follower_at_a_time(
    world: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(following, "LEASE", timedelta(hours=1))
    first = world.followers["runs"]
    second = followers(world.db, world.client, lambda: None)["runs"]
    assert await first._take() == ""
    assert await second._take() is None
    assert await first._take() == ""
    await first._release()
    assert await second._take() == ""


async def test_runs_of_other_tenants_and_unknown_schedules_are_passed_over(world: Any) -> None:
    schedule = await world.create()
    await world.fire(schedule)
    await world.deliver()
    [slot] = await world.slots(schedule)
    run = world.executor.runs[slot.run_id]
    run.tenant_id = "other"
    await world.executor.end(slot.run_id)
    run.origin.schedule.schedule_id = new_id()
    await world.executor.end(slot.run_id)
    await world.hear()
    [slot] = await world.slots(schedule)
    assert not slot.run_finished
