"""The Executor that Scheduler tests run against answers as the real one does."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.timestamp_pb2 import Timestamp

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import executor_service_pb2_grpc as run_stubs
from cogni.executor.v1 import grant_pb2, run_pb2
from cogni.executor.v1 import grant_service_pb2 as grant_pb
from cogni.executor.v1 import grant_service_pb2_grpc as grant_stubs
from services.runtime.channels import acting_for, service_channel
from services.runtime.errors import PeerError
from services.runtime.ids import new_id
from services.scheduler.adapters.executor import ExecutorClient
from services.scheduler.runs import CursorLostError
from tests.executor.conftest import GRAPH, World, start_request
from tests.plugins.identities import Identities
from tests.scheduler.fake_executor import FakeExecutor

WAIT_SECONDS = 60
SLOT = run_pb2.ScheduleOrigin(
    schedule_id="0198c0de-0000-7000-8000-000000000001",
    scheduled_time=Timestamp(seconds=1_800_000_000),
    slot_id="slot",
)


@dataclass
class Peer:
    """An Executor as the Scheduler calls it; ids are told by the order in which they came."""

    runs: Any
    grants: Any
    client: ExecutorClient
    #: Makes a grant of alice's for a graph.
    grant: Callable[[str], Awaitable[str]]
    revoke: Callable[[str], Awaitable[None]]
    names: dict[str, str] = field(default_factory=dict)
    answers: dict[str, Any] = field(default_factory=dict)

    def name(self, id: str) -> str:
        return self.names.setdefault(id, f"id {len(self.names)}")

    async def ask(
        self, what: str, method: Any, request: Any, tenant: str = "acme", who: str | None = "alice"
    ) -> str:
        """Note what came of a call: a code and a reason, or what the Scheduler reads of it.

        Returns the id in the answer, "" for a refusal.
        """
        assert what not in self.answers
        try:
            with acting_for(tenant, who):
                answer = await method(request)
        except PeerError as error:
            self.answers[what] = (error.kind, error.reason)
            return ""
        if isinstance(answer, grant_pb.GetGrantResponse):
            grant = answer.grant
            state = grant_pb2.GrantState.Name(grant.state)
            read = (self.name(grant.grant_id), state, list(grant.graphs), grant.owner)
            self.answers[what] = read
            return grant.grant_id
        run = answer.run
        costs = [(each.asset, each.value) for each in run.usage.costs]
        self.answers[what] = (self.name(run.run_id), run_pb2.RunState.Name(run.state), costs)
        run_id: str = run.run_id
        return run_id

    async def runs_changed(self, what: str, cursor: str, count: int) -> str:
        """Note that many changes after the cursor; return the cursor behind them."""
        seen: list[Any] = []
        self.answers[what] = seen
        async with patience():
            async for batch in self.client.watch_runs(cursor):
                seen += [
                    (each.key, each.tenant_id, self.name(each.run.run_id), each.run.state)
                    for each in batch.changes
                ]
                cursor = batch.cursor
                if len(seen) >= count:
                    self.answers[f"{what}, to when"] = batch.watermark_time is not None
                    break
        return cursor

    async def end_of(self, grant_id: str) -> None:
        """Note what WatchGrants tells of the grant's end."""
        async with patience():
            async for batch in self.client.watch_grants(""):
                for each in batch.changes:
                    if each.grant_id == grant_id and each.state != "ACTIVE":
                        watermark = batch.watermark_time is not None
                        told = (each.tenant_id, each.state, each.expire_time, watermark)
                        self.answers["the end of the grant"] = told
                        return


@asynccontextmanager
async def patience() -> AsyncIterator[None]:
    """What does not come in time is missing where the answers are compared."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(WAIT_SECONDS):
            yield


async def converse(peer: Peer) -> dict[str, Any]:
    """Everything that the Scheduler says to an Executor, and what it must not."""
    grant_id, narrow = await peer.grant(GRAPH), await peer.grant("other")
    start, get = peer.runs.StartRun, peer.runs.GetRun
    order = start_request(grant_id, origin=run_pb2.RunOrigin(schedule=SLOT))

    def ordered(**changes: Any) -> pb.StartRunRequest:
        changed = pb.StartRunRequest()
        changed.CopyFrom(order)
        changed.MergeFrom(pb.StartRunRequest(**{"request_id": new_id(), **changes}))
        return changed

    first = await peer.ask("a new start", start, order)
    again = {"request_id": order.request_id}
    await peer.ask("the same again", start, order)
    await peer.ask("another body", start, ordered(**again, labels={"a": "b"}))
    await peer.ask("another person", start, order, who="bob")
    await peer.ask("no such grant", start, ordered(grant_id=new_id()))
    await peer.ask("another tenant's grant", start, ordered(), tenant="other")
    await peer.ask("not bob's grant", start, ordered(), who="bob")
    await peer.ask("nobody's start", start, ordered(), who=None)
    refused = ordered(grant_id=narrow)
    await peer.ask("another graph", start, refused)
    second = await peer.ask("a refused id", start, ordered(request_id=refused.request_id))
    cursor = await peer.runs_changed("starts", "", 2)

    await peer.ask("the run", get, pb.GetRunRequest(run_id=first))
    await peer.ask("no such run", get, pb.GetRunRequest(run_id=new_id()))
    await peer.ask("not their run", get, pb.GetRunRequest(run_id=first), tenant="other")
    cancel = pb.CancelRunRequest(run_id=first, reason=run_pb2.CANCEL_REASON_SUPERSEDED)
    await peer.ask("not theirs to cancel", peer.runs.CancelRun, cancel, tenant="other")
    await peer.ask("cancelled", peer.runs.CancelRun, cancel)
    await peer.ask("cancelled again", peer.runs.CancelRun, cancel)
    unknown = pb.CancelRunRequest(run_id=new_id(), reason=run_pb2.CANCEL_REASON_SUPERSEDED)
    await peer.ask("none to cancel", peer.runs.CancelRun, unknown)

    asked = grant_pb.GetGrantRequest(grant_id=grant_id)
    await peer.ask("the grant", peer.grants.GetGrant, asked)
    await peer.ask("not their grant", peer.grants.GetGrant, asked, tenant="other")
    nothing = grant_pb.GetGrantRequest(grant_id=new_id())
    await peer.ask("no such grant to get", peer.grants.GetGrant, nothing)
    await peer.revoke(grant_id)
    await peer.ask("the revoked grant", peer.grants.GetGrant, asked)
    await peer.ask("a start under it", start, ordered())
    await peer.ask("an old start under it", start, order)
    await peer.ask("its run", get, pb.GetRunRequest(run_id=second))
    await peer.runs_changed("ends", cursor, 2)
    await peer.end_of(grant_id)

    for watch in (peer.client.watch_runs, peer.client.watch_grants):
        try:
            await anext(watch("damaged"))
        except CursorLostError:
            peer.answers[f"{watch.__name__} after a damaged cursor"] = "lost"
    return peer.answers


@asynccontextmanager
async def serving(fake: FakeExecutor) -> AsyncIterator[str]:
    server, address = await fake.serve()
    try:
        yield address
    finally:
        await server.stop(None)


@asynccontextmanager
async def scheduler_at(
    address: str, identities: Identities, grant: Any, revoke: Any
) -> AsyncIterator[Peer]:
    channel = service_channel(address, "executor", identities.service_tokens("scheduler"))
    runs = run_stubs.ExecutorServiceStub(channel)
    grants = grant_stubs.GrantServiceStub(channel)
    try:
        yield Peer(runs, grants, ExecutorClient(channel), grant, revoke)
    finally:
        await channel.close()


async def test_the_stand_in_answers_the_scheduler_as_the_executor_does(
    quiet_world: World, identities: Identities
) -> None:
    async def real_grant(graph_id: str) -> str:
        return await quiet_world.grant(graphs=[f"graph:execute:{graph_id}"])

    async def real_revoke(grant_id: str) -> None:
        await quiet_world.grants().RevokeGrant(grant_pb.RevokeGrantRequest(grant_id=grant_id))

    async def fake_grant(graph_id: str) -> str:
        return fake.grant(graph_id)

    address = quiet_world.served.address
    async with scheduler_at(address, identities, real_grant, real_revoke) as peer:
        real = await converse(peer)
    async with (
        serving(fake := FakeExecutor()) as address,
        scheduler_at(address, identities, fake_grant, fake.revoke) as peer,
    ):
        stand_in = await converse(peer)

    assert real["a new start"] == ("id 0", "RUN_STATE_QUEUED", [])
    assert stand_in == real
