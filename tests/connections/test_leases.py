"""Leases: only what a run's grant names, to the attempt that is alive, each decision recorded."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import pytest

from services.connections import batching
from services.connections.access_log import Decision, Record, RecordFilter, first_break
from services.connections.credential import BearerCredential
from services.connections.lease import Target
from services.connections.providers.provider import LeaseWish
from services.connections.use_cases.access_records import list_records
from services.runtime.errors import ServiceError
from tests.connections.conftest import World, executor, lease_wanted, runner, user
from tests.databases import Clock


async def records(world: World, tenant_id: str = "t1") -> list[Record]:
    page, _, _ = await list_records(
        world.database,
        user(tenant_id=tenant_id),
        RecordFilter(),
        oldest_first=True,
        page_size=1000,
        page_token="",
    )
    return page


async def refused(world: World, *arguments: object, **changes: object) -> str:
    with pytest.raises(ServiceError) as caught:
        await world.leases.lease(*arguments, **changes)  # type: ignore[arg-type]
    return caught.value.reason


async def test_a_named_connection_is_leased_as_a_session_and_never_as_its_secret(
    world: World,
) -> None:
    made = await world.connect(user())
    lease = await world.leases.lease(runner(made.connection_id), lease_wanted(made.connection_id))
    assert isinstance(lease.credential, BearerCredential)
    assert lease.credential.access_token.endswith("-access-1")
    assert world.sessions.begun == 1, "the session made by the check at creation is reused"


async def test_a_connection_that_the_grant_does_not_name_is_refused(world: World) -> None:
    made = await world.connect(user())
    assert (
        await refused(world, runner("another"), lease_wanted(made.connection_id))
        == "CONNECTION_NOT_GRANTED"
    )


async def test_a_lease_for_which_too_many_wait_is_refused_on_record(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await world.connect(user())
    await world.leases.lease(runner(made.connection_id), lease_wanted(made.connection_id))
    monkeypatch.setattr(batching, "WAITING_MAX", 0)

    wanted = lease_wanted(made.connection_id, invocation_id="inv-2")
    assert await refused(world, runner(made.connection_id), wanted) == "LIMIT_EXCEEDED"

    entry = (await records(world))[-1].entry
    assert (entry.decision, entry.reason) == (Decision.DENIED, "LIMIT_EXCEEDED")
    assert entry.invocation_id == "inv-2"


async def test_another_tenants_connection_is_not_found_even_when_named(world: World) -> None:
    made = await world.connect(user())
    stranger = runner(made.connection_id, tenant_id="t2")
    assert await refused(world, stranger, lease_wanted(made.connection_id)) == "NOT_FOUND"


async def test_a_repeated_request_answers_with_the_same_lease(world: World) -> None:
    made = await world.connect(user())
    run = runner(made.connection_id)
    first = await world.leases.lease(run, lease_wanted(made.connection_id))
    again = await world.leases.lease(run, lease_wanted(made.connection_id))
    other = await world.leases.lease(
        run, lease_wanted(made.connection_id, invocation_id="invocation-2")
    )
    assert (again.lease_id, again.expire_time) == (first.lease_id, first.expire_time)
    assert other.lease_id != first.lease_id


async def test_a_revoked_grant_gets_no_lease_and_its_live_ones_end(world: World) -> None:
    made = await world.connect(user())
    run = runner(made.connection_id)
    await world.leases.lease(run, lease_wanted(made.connection_id))

    ended = await world.leases.revoke(executor(), Target(grant_id="grant-1"), "asked to")
    again = await world.leases.revoke(executor(), Target(grant_id="grant-1"), "")

    assert (ended, again) == (1, 0)
    assert await refused(world, run, lease_wanted(made.connection_id)) == "GRANT_REVOKED"


async def test_a_grant_revoked_before_it_was_ever_used_is_remembered(world: World) -> None:
    made = await world.connect(user())
    await world.leases.revoke(executor(), Target(grant_id="grant-1"), "")
    run = runner(made.connection_id)
    assert await refused(world, run, lease_wanted(made.connection_id)) == "GRANT_REVOKED"


async def test_an_attempt_handed_back_gets_no_lease_but_the_next_one_does(world: World) -> None:
    made = await world.connect(user())
    await world.leases.revoke(executor(), Target(run_id="run-1", up_to_epoch=1), "")
    stale, fresh = runner(made.connection_id), runner(made.connection_id, epoch=2)
    assert await refused(world, stale, lease_wanted(made.connection_id)) == "RUN_LEASES_REVOKED"
    assert (await world.leases.lease(fresh, lease_wanted(made.connection_id))).lease_id


async def test_a_late_revocation_of_an_early_attempt_revives_nothing(world: World) -> None:
    made = await world.connect(user())
    await world.leases.revoke(executor(), Target(run_id="run-1", up_to_epoch=3), "")
    await world.leases.revoke(executor(), Target(run_id="run-1", up_to_epoch=1), "")
    third = runner(made.connection_id, epoch=3)
    assert await refused(world, third, lease_wanted(made.connection_id)) == "RUN_LEASES_REVOKED"


async def test_an_attempt_that_was_overtaken_is_stale_without_being_revoked(world: World) -> None:
    made = await world.connect(user())
    await world.leases.lease(runner(made.connection_id, epoch=2), lease_wanted(made.connection_id))
    old = runner(made.connection_id, epoch=1)
    assert await refused(world, old, lease_wanted(made.connection_id)) == "RUN_LEASES_REVOKED"


async def test_revoking_a_connections_leases_lets_new_ones_begin(world: World) -> None:
    made = await world.connect(user())
    run = runner(made.connection_id)
    await world.leases.lease(run, lease_wanted(made.connection_id))
    ended = await world.leases.revoke(executor(), Target(connection_id=made.connection_id), "")
    assert ended == 1
    assert (await world.leases.lease(run, lease_wanted(made.connection_id))).lease_id


async def test_a_deleted_connection_is_gone_for_its_runs(world: World) -> None:
    made = await world.connect(user())
    await world.connections.delete(user(), made.connection_id, etag="", allow_missing=False)
    run = runner(made.connection_id)
    assert await refused(world, run, lease_wanted(made.connection_id)) == "NOT_FOUND"


async def test_scopes_beyond_the_connections_are_refused(world: World) -> None:
    made = await world.connect(user())
    wanted = lease_wanted(made.connection_id, wish=LeaseWish(scopes=("admin",)))
    assert await refused(world, runner(made.connection_id), wanted) == "SCOPES_MISSING"


async def test_a_lease_never_outlives_the_session(world: World) -> None:
    world.sessions.lasts = timedelta(minutes=2)
    made = await world.connect(user())
    lease = await world.leases.lease(
        runner(made.connection_id), lease_wanted(made.connection_id, ttl=timedelta(hours=1))
    )
    first = (await records(world))[0]
    assert lease.expire_time - first.record_time < timedelta(minutes=2, seconds=5)


async def test_a_session_at_its_end_is_renewed_before_it_is_leased(
    world: World, clock: Clock
) -> None:
    made = await world.connect(user())
    await clock.advance(world.database, timedelta(hours=2))
    lease = await world.leases.lease(runner(made.connection_id), lease_wanted(made.connection_id))
    assert isinstance(lease.credential, BearerCredential)
    assert lease.credential.access_token.endswith("-access-2")
    assert world.sessions.renewed == 1


async def test_a_session_near_its_end_is_leased_at_once_and_renewed_behind(
    world: World, clock: Clock
) -> None:
    made = await world.connect(user())
    await clock.advance(world.database, timedelta(minutes=118))
    lease = await world.leases.lease(runner(made.connection_id), lease_wanted(made.connection_id))
    await world.renewals.close()
    assert isinstance(lease.credential, BearerCredential)
    assert lease.credential.access_token.endswith("-access-1")
    assert world.sessions.renewed == 1


async def test_every_decision_is_in_an_unbroken_log(world: World) -> None:
    made = await world.connect(user())
    run = runner(made.connection_id)
    await world.leases.lease(run, lease_wanted(made.connection_id))
    await refused(world, runner("another"), lease_wanted(made.connection_id))
    await world.leases.revoke(executor(), Target(grant_id="grant-1"), "bye")
    await refused(world, run, lease_wanted(made.connection_id))

    log = await records(world)

    told = [(r.entry.action.value, r.entry.decision, r.entry.reason) for r in log]
    assert told == [
        ("CREATE_CONNECTION", Decision.ALLOWED, ""),
        ("LEASE_CREDENTIAL", Decision.ALLOWED, ""),
        ("LEASE_CREDENTIAL", Decision.DENIED, "CONNECTION_NOT_GRANTED"),
        ("REVOKE_LEASES", Decision.ALLOWED, ""),
        ("LEASE_CREDENTIAL", Decision.DENIED, "GRANT_REVOKED"),
    ]
    lease = log[1].entry
    assert (lease.actor, lease.run_id, lease.epoch, lease.grant_id, lease.invocation_id) == (
        "run:run-1",
        "run-1",
        1,
        "grant-1",
        "invocation-1",
    )
    assert first_break(log) is None


async def test_no_lease_is_committed_after_its_grants_revocation_returned(world: World) -> None:
    made = await world.connect(user())

    async def lease(number: int) -> bool:
        try:
            await world.leases.lease(
                runner(made.connection_id, run_id=f"run-{number}"),
                lease_wanted(made.connection_id),
            )
        except ServiceError:
            return False
        return True

    async with asyncio.TaskGroup() as group:
        attempts = [group.create_task(lease(number)) for number in range(20)]
        revoking = group.create_task(
            world.leases.revoke(executor(), Target(grant_id="grant-1"), "")
        )
    given = sum(task.result() for task in attempts)

    assert revoking.result() == given, "each lease given was live when it was revoked"
    order = [r.entry.action.value for r in await records(world) if r.entry.reason == ""]
    after = order[order.index("REVOKE_LEASES") :]
    assert "LEASE_CREDENTIAL" not in after


async def test_what_is_over_for_a_day_is_swept(world: World, clock: Clock) -> None:
    made = await world.connect(user())
    await world.leases.lease(runner(made.connection_id), lease_wanted(made.connection_id))
    assert await world.leases.sweep() == 0
    await clock.advance(world.database, timedelta(days=2))
    assert await world.leases.sweep() == 1
