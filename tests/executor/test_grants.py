"""A grant bounds its runs, and ends for good."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import grant_pb2, run_pb2
from cogni.executor.v1 import grant_service_pb2 as grant_pb
from cogni.executor.v1.runner_service_pb2 import MintRunTokenRequest
from cogni.type.v1.amount_pb2 import Amount
from cogni.type.v1.error_reason_pb2 import ErrorReason
from services.executor.grants import GrantState, decide_invocation
from services.executor.store import grants
from services.runtime.ids import new_id
from tests.databases import Clock
from tests.executor.conftest import World, grant_request
from tests.plugins.calls import refused

DEADLINE_SECONDS = 60


async def test_a_grant_comes_back_as_it_was_asked_for(world: World) -> None:
    constraint = grant_pb2.ArgumentConstraint
    paths = [
        constraint(path="text", required=True, max_length=300),
        constraint(path="to", glob="@*.example"),
        constraint(path="count", range=grant_pb2.NumberRange(min=1, max=5)),
        constraint(path="anything"),
    ]
    paths.append(constraint(path="lang"))
    paths[-1].one_of.extend(["en", "de"])
    paths.append(constraint(path="visible"))
    paths[-1].equals.bool_value = True
    request = grant_request(
        display_name="Digest",
        tools=[
            grant_pb2.ToolPermission(
                tool="post", arguments=paths, only_named_arguments=True, max_invocations_per_run=2
            )
        ],
        connection_ids=[new_id()],
        budget=Amount(asset="USD", value="12.50"),
        labels={"team": "a"},
    )

    created = (await world.grants().CreateGrant(request)).grant
    read = (
        await world.grants().GetGrant(grant_pb.GetGrantRequest(grant_id=created.grant_id))
    ).grant

    assert read == created
    assert list(read.tools) == list(request.tools)
    assert list(read.connection_ids) == list(request.connection_ids)
    assert (read.owner, read.state) == ("alice", grant_pb2.GRANT_STATE_ACTIVE)
    assert read.budget == Amount(asset="USD", value="12.5")


@pytest.mark.parametrize("field", ["expire_time", "tools[0].arguments[0].range.max"])
async def test_a_grant_that_could_not_be_read_again_is_refused_by_its_field(
    world: World, field: str
) -> None:
    changes: dict[str, Any] = {"expire_time": Timestamp(seconds=253402300799, nanos=999_999_999)}
    if field != "expire_time":
        bounds = grant_pb2.NumberRange(max=float("inf"))
        path = grant_pb2.ArgumentConstraint(path="count", range=bounds)
        changes = {"tools": [grant_pb2.ToolPermission(tool="post", arguments=[path])]}

    refusal = await refused(world.grants().CreateGrant(grant_request(**changes)))

    assert refusal.reason == "INVALID_REQUEST"
    assert field in refusal.message


async def test_a_repeated_request_makes_one_grant_and_another_content_is_refused(
    world: World,
) -> None:
    request = grant_request()

    answers = await asyncio.gather(*(world.grants().CreateGrant(request) for _ in range(20)))
    request.display_name = "another"
    refusal = await refused(world.grants().CreateGrant(request))

    assert len({answer.grant.grant_id for answer in answers}) == 1
    assert refusal.reason == "REQUEST_ID_REUSED"


@pytest.mark.parametrize("resource", ["connection", "account"])
@pytest.mark.parametrize("fault", ["foreign", "missing"])
async def test_a_grant_names_only_what_its_creator_may_grant(
    world: World, resource: str, fault: str
) -> None:
    theirs, mine = new_id(), new_id()
    getattr(world.resources, fault).add(theirs)
    naming = {"connection_ids": [mine, theirs]} if resource == "connection" else {}
    naming = naming or {"account_id": theirs}

    refusal = await refused(world.grants().CreateGrant(grant_request(**naming)))

    assert refusal.reason == {"foreign": "RESOURCE_NOT_OWNED", "missing": "NOT_FOUND"}[fault]
    assert (refusal.info.metadata["resource"], refusal.info.metadata["id"]) == (resource, theirs)
    assert not (await world.grants().ListGrants(grant_pb.ListGrantsRequest())).grants


async def test_a_repeat_returns_the_grant_whatever_became_of_what_it_names(world: World) -> None:
    request = grant_request(connection_ids=[new_id()])
    first = await world.grants().CreateGrant(request)

    world.resources.missing.update(request.connection_ids)

    assert (await world.grants().CreateGrant(request)).grant == first.grant


async def test_revoking_denies_queued_and_waiting_runs_and_stops_running_ones(
    world: World,
) -> None:
    grant_id, other = await world.grant(), await world.grant()
    queued, running = await world.start(grant_id), await world.start(grant_id)
    untouched = await world.start(other)
    attempt = await world.claim(running.run_id)

    revoked = await _revoke(world, grant_id, "no longer needed")

    assert revoked.state == grant_pb2.GRANT_STATE_REVOKED
    assert (revoked.revoker, revoked.revoke_comment) == ("alice", "no longer needed")
    denied = await world.run(queued.run_id)
    assert denied.state == run_pb2.RUN_STATE_DENIED
    assert denied.error.reason == ErrorReason.ERROR_REASON_GRANT_REVOKED
    asked = await world.run(running.run_id)
    assert asked.cancellation.reason == run_pb2.CANCEL_REASON_GRANT_REVOKED
    assert (await world.run(untouched.run_id)).state == run_pb2.RUN_STATE_QUEUED
    minted = await refused(_mint(world, attempt.run_id, attempt.epoch))
    assert minted.reason == "GRANT_REVOKED"
    async with asyncio.timeout(DEADLINE_SECONDS):
        assert await world.revocations.get() == grant_id


async def test_a_revocation_returns_only_when_no_credential_can_be_leased(world: World) -> None:
    grant_id = await world.grant()
    run = await world.start(grant_id)
    world.resources.reachable = False

    refusal = await refused(_revoking(world, grant_id))
    assert refusal.reason == "UNAVAILABLE"
    assert (await world.run(run.run_id)).state == run_pb2.RUN_STATE_DENIED
    world.resources.reachable = True
    await _revoke(world, grant_id)

    assert world.resources.revoked == [grant_id]


async def test_revoking_again_changes_nothing(world: World) -> None:
    grant_id = await world.grant()
    first = await _revoke(world, grant_id, "first")

    assert await _revoke(world, grant_id, "second") == first


async def test_no_decision_that_allows_commits_after_a_revocation_has_returned(
    world: World,
) -> None:
    """The decision holds the grant, so the revocation waits for its commit."""
    grant_id = await world.grant(tools=[grant_pb2.ToolPermission(tool="post")])

    async with world.database.raw_tenant("acme") as deciding:
        held = await grants.hold(deciding, grant_id)
        assert held is not None
        grant, now = held
        decision = decide_invocation(
            grant, "post", {}, connection_id=None, invocations_before=0, now=now
        )
        assert decision.allowed
        revoking = asyncio.create_task(_revoke(world, grant_id))
        await _until_somebody_waits(world)
        assert not revoking.done()
    await revoking

    async with world.database.raw_tenant("acme") as tx:
        held = await grants.hold(tx, grant_id)
        assert held is not None
        after = decide_invocation(
            held[0], "post", {}, connection_id=None, invocations_before=0, now=held[1]
        )
    assert (after.allowed, after.reason) == (False, "GRANT_REVOKED")


async def test_decisions_that_never_pause_do_not_hold_a_revocation_back(world: World) -> None:
    grant_id = await world.grant()
    overlapping = 4
    going = asyncio.Event()
    held = 0

    async def decide() -> None:
        nonlocal held
        state = GrantState.ACTIVE
        while state is GrantState.ACTIVE:
            async with world.database.raw_tenant("acme") as tx:
                found = await grants.hold(tx, grant_id)
                assert found is not None
                state = found[0].state
                held += 1
                if held >= overlapping:
                    going.set()
                await tx.execute("SELECT pg_sleep(0.05)")

    deciding = [asyncio.create_task(decide()) for _ in range(overlapping)]
    await going.wait()

    async with asyncio.timeout(DEADLINE_SECONDS):
        await _revoke(world, grant_id)
        await asyncio.gather(*deciding)


async def test_a_start_that_races_a_revocation_is_refused_or_denied(world: World) -> None:
    for _ in range(10):
        grant_id = await world.grant()

        started, _ = await asyncio.gather(
            world.start(grant_id), _revoke(world, grant_id), return_exceptions=True
        )

        if isinstance(started, run_pb2.Run):
            run = await world.run(started.run_id)
            assert run.state == run_pb2.RUN_STATE_DENIED


async def test_a_stranger_can_neither_read_nor_revoke_a_grant(world: World) -> None:
    grant_id = await world.grant()
    stranger = world.grants("other", "mallory")

    read = await refused(stranger.GetGrant(grant_pb.GetGrantRequest(grant_id=grant_id)))
    revoked = await refused(stranger.RevokeGrant(grant_pb.RevokeGrantRequest(grant_id=grant_id)))

    assert read.reason == revoked.reason == "NOT_FOUND"


async def test_an_expired_grant_ends_and_its_runs_are_denied(world: World, clock: Clock) -> None:
    soon = Timestamp()
    soon.FromDatetime(datetime.now(UTC) + timedelta(hours=1))
    grant_id = await world.grant(expire_time=soon)
    run = await world.start(grant_id)

    await clock.advance(world.database, timedelta(hours=2))

    async with asyncio.timeout(DEADLINE_SECONDS):
        [finished] = [
            batch
            async for batch in world.executor().WatchRun(
                pb.WatchRunRequest(run_id=run.run_id, after_seq=1)
            )
            if any(event.HasField("finished") for event in batch.events)
        ]
    assert finished.events[-1].finished.error.reason == ErrorReason.ERROR_REASON_GRANT_EXPIRED
    read = await world.grants().GetGrant(grant_pb.GetGrantRequest(grant_id=grant_id))
    assert read.grant.state == grant_pb2.GRANT_STATE_EXPIRED


async def test_grants_are_listed_newest_first_page_by_page(world: World) -> None:
    made = [await world.grant(labels={"n": str(n)}) for n in range(4)]
    made.append(await world.grant(graphs=["graph:execute:digest", "graph:execute:another"]))
    await world.grant("other", "bob")
    stub = world.grants()

    first = await stub.ListGrants(grant_pb.ListGrantsRequest(page_size=3))
    rest = await stub.ListGrants(
        grant_pb.ListGrantsRequest(page_size=3, page_token=first.next_page_token)
    )
    filtered = await stub.ListGrants(grant_pb.ListGrantsRequest(labels={"n": "3"}))
    of_graph = await stub.ListGrants(grant_pb.ListGrantsRequest(graph_id="another"))
    other_filter = await refused(
        stub.ListGrants(grant_pb.ListGrantsRequest(owner="alice", page_token=first.next_page_token))
    )

    listed = [grant.grant_id for page in (first, rest) for grant in page.grants]
    assert listed == made[::-1]
    assert rest.next_page_token == ""
    assert [grant.grant_id for grant in filtered.grants] == [made[3]]
    assert [grant.grant_id for grant in of_graph.grants] == [made[4]]
    assert other_filter.reason == "PAGE_TOKEN_INVALID"


async def test_changes_of_grants_stream_in_order_and_resume(world: World) -> None:
    grant_id = await world.grant()
    call = world.grants().WatchGrants(grant_pb.WatchGrantsRequest())
    created, cursor = await _next_change(call)
    call.cancel()
    await _revoke(world, grant_id)

    resumed = world.grants().WatchGrants(grant_pb.WatchGrantsRequest(cursor=cursor))
    ended, _ = await _next_change(resumed)
    resumed.cancel()

    assert (created.grant_id, created.state) == (grant_id, grant_pb2.GRANT_STATE_ACTIVE)
    assert (ended.grant_id, ended.state) == (grant_id, grant_pb2.GRANT_STATE_REVOKED)


@pytest.mark.parametrize("cursor", ["nonsense", "AAAA"])
async def test_a_damaged_cursor_is_refused(world: World, cursor: str) -> None:
    call = world.grants().WatchGrants(grant_pb.WatchGrantsRequest(cursor=cursor))

    assert (await refused(call)).reason == "CURSOR_INVALID"


def _revoking(world: World, grant_id: str, comment: str = "") -> Any:
    request = grant_pb.RevokeGrantRequest(grant_id=grant_id, comment=comment)
    return world.grants().RevokeGrant(request)


async def _revoke(world: World, grant_id: str, comment: str = "") -> grant_pb2.Grant:
    return (await _revoking(world, grant_id, comment)).grant


def _mint(world: World, run_id: str, epoch: int) -> object:
    return world.runner().MintRunToken(MintRunTokenRequest(run_id=run_id, epoch=epoch))


async def _next_change(call: object) -> tuple[grant_pb2.GrantChange, str]:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            batch = await call.read()  # type: ignore[attr-defined]
            if batch.changes:
                return batch.changes[0], batch.cursor


async def _until_somebody_waits(world: World) -> None:
    waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            async with world.database.raw_jobs() as tx:
                if await tx.fetchval(waiting):
                    return
