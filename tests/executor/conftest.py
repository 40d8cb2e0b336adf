"""A real Executor server of one test, and an attempt that a test carries out by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import asyncpg
import pytest

from cogni.executor.v1 import executor_service_pb2 as pb
from cogni.executor.v1 import grant_service_pb2 as grant_pb
from cogni.executor.v1.executor_service_pb2_grpc import ExecutorServiceStub
from cogni.executor.v1.grant_service_pb2_grpc import GrantServiceStub
from cogni.executor.v1.run_event_pb2 import (
    ATTEMPT_CAUSE_FIRST,
    AttemptStarted,
    CustomEvent,
    RunFinished,
)
from cogni.executor.v1.run_pb2 import RUN_STATE_SUCCEEDED
from cogni.executor.v1.runner_service_pb2_grpc import RunnerServiceStub
from services.executor.adapters.ledger import Answer, Recording
from services.executor.amounts import Amount
from services.executor.composition import Surroundings, application, signer
from services.executor.events import Draft
from services.executor.grants import McpServer
from services.executor.graphs import EVERY_TENANT, Graph
from services.executor.runs import RunState
from services.executor.store import events, graphs, runs
from services.executor.usage import Closing, SettledUnit
from services.runtime.database import Database
from services.runtime.drain import Drain
from services.runtime.errors import ErrorKind, PeerError
from services.runtime.ids import new_id
from services.runtime.listen import Listener
from services.runtime.outbox import Entry
from services.runtime.pools import DatabaseLimits
from services.runtime.server import Application
from services.runtime.settings import TelemetrySettings
from services.runtime.telemetry import start_telemetry
from tests.databases import DatabaseFactory
from tests.plugins.identities import Identities
from tests.plugins.serving import Served, ServeService

GRAPH = "digest"
SCOPES = ("runs:read", "runs:write", "grants:read", "grants:write", "audit:read")
# So long that no slow machine outlives it; tests that want it to end move the clock.
LEASE = timedelta(minutes=10)
# As many connections as a server has by default, and patience for a machine that is busy.
PATIENCE = timedelta(seconds=60)
LIMITS = DatabaseLimits(
    raw_connections_max=10,
    wait_for_connection=PATIENCE,
    connect=PATIENCE,
    statement=PATIENCE,
    lock=PATIENCE,
    idle_in_transaction=PATIENCE,
)


@dataclass
class RecordingLedger:
    """Stands for the Ledger where no Ledger runs; answers what the test tells it to."""

    units: list[SettledUnit] = field(default_factory=list)
    closings: list[Closing] = field(default_factory=list)
    answer: Recording = Recording.RECORDED
    charge: Amount | None = None

    async def record(self, tenant_id: str, units: Sequence[SettledUnit]) -> list[Answer]:
        self.units += units
        return [Answer(self.answer, self.charge) for _ in units]

    async def close_run(self, closing: Closing) -> None:
        self.closings.append(closing)


@dataclass
class OwnedResources:
    """Stands for Connections and the Ledger: what is listed belongs to somebody else."""

    foreign: set[str] = field(default_factory=set)
    missing: set[str] = field(default_factory=set)
    revoked: list[str] = field(default_factory=list)
    reachable: bool = True
    #: The MCP servers behind connections.
    servers: dict[str, McpServer] = field(default_factory=dict)
    server_failure: PeerError | None = None

    async def revoke_leases(self, tenant_id: str, grant_id: str) -> None:
        if not self.reachable:
            raise PeerError("connections", ErrorKind.UNAVAILABLE, "", "nobody answers")
        self.revoked.append(grant_id)

    async def may_grant(self, tenant_id: str, subject: str, connection_id: str) -> bool:
        if connection_id in self.missing:
            raise PeerError("connections", ErrorKind.NOT_FOUND, "NOT_FOUND", "not there")
        return connection_id not in self.foreign

    async def mcp_tools(self, tenant_id: str, subject: str, connection_id: str) -> McpServer | None:
        if self.server_failure is not None:
            raise self.server_failure
        return self.servers.get(connection_id)

    async def may_spend(self, tenant_id: str, subject: str, account_id: str) -> bool:
        if account_id in self.missing:
            raise PeerError("ledger", ErrorKind.NOT_FOUND, "NOT_FOUND", "not there")
        return account_id not in self.foreign


@dataclass
class World:
    """One Executor server, its database, and callers of it."""

    database: Database
    served: Served
    application: Application
    identities: Identities
    ledger: RecordingLedger
    resources: OwnedResources
    drain: Drain
    hints: asyncio.Queue[str]
    revocations: asyncio.Queue[str]

    def executor(self, tenant: str = "acme", subject: str = "alice") -> Any:
        """The stub of a caller with every scope."""
        token = self.identities.user_token(tenant, subject, SCOPES)
        return ExecutorServiceStub(self.served.channel(token))

    def grants(self, tenant: str = "acme", subject: str = "alice") -> Any:
        token = self.identities.user_token(tenant, subject, SCOPES)
        return GrantServiceStub(self.served.channel(token))

    def runner(self, tenant: str = "acme", service: str = "runner") -> Any:
        token = self.identities.service_token(service, "executor", tenant)
        return RunnerServiceStub(self.served.channel(token))

    def scheduler(self, tenant: str, on_behalf_of: str | None = None) -> Any:
        token = self.identities.service_token("scheduler", "executor", tenant, on_behalf_of)
        return ExecutorServiceStub(self.served.channel(token))

    async def grant(self, tenant: str = "acme", subject: str = "alice", **changes: Any) -> str:
        """Create a grant for the graph and return its id."""
        request = grant_request(**changes)
        response = await self.grants(tenant, subject).CreateGrant(request)
        grant_id: str = response.grant.grant_id
        return grant_id

    async def start(self, grant_id: str, **changes: Any) -> Any:
        """Start a run under the grant and return it."""
        return (await self.executor().StartRun(start_request(grant_id, **changes))).run

    async def run(self, run_id: str) -> Any:
        return (await self.executor().GetRun(pb.GetRunRequest(run_id=run_id))).run

    async def claim(self, run_id: str, tenant: str = "acme") -> Attempt:
        """Begin an attempt as a runner does."""
        async with self.database.raw_jobs() as tx:
            epoch = await tx.fetchval(
                "UPDATE run_leases SET epoch = epoch + 1, holder = 'tests',"
                " expire_time = cogni_now() + $2, ready_time = NULL WHERE run_id = $1"
                " RETURNING epoch",
                run_id,
                LEASE,
            )
            number = await tx.fetchval(
                "UPDATE runs SET state = 'RUNNING', attempt = attempt + 1,"
                " start_time = coalesce(start_time, cogni_now()) WHERE run_id = $1"
                " RETURNING attempt",
                run_id,
            )
        attempt = Attempt(self.database, run_id, tenant, epoch, number)
        await attempt.append(AttemptStarted(cause=ATTEMPT_CAUSE_FIRST, runner="tests"))
        return attempt


@dataclass(frozen=True)
class Attempt:
    """An attempt in the test's hands."""

    database: Database
    run_id: str
    tenant_id: str
    epoch: int
    number: int

    async def append(self, *contents: Any) -> int | None:
        """Append events under the fence; None when the lease is lost."""
        async with self.database.raw_tenant(self.tenant_id) as tx:
            return await self.append_in(tx, *contents)

    async def append_in(self, tx: asyncpg.Connection, *contents: Any) -> int | None:
        drafts = [Draft(content) for content in contents]
        newest = await events.append_fenced(
            tx, self.run_id, self.tenant_id, self.epoch, self.number, drafts
        )
        if newest is not None:
            await events.notify(tx, [(self.run_id, newest)])
        return newest

    async def chatter(self, count: int) -> None:
        """Append `count` events whose bytes a second encoder would hardly repeat."""
        for index in range(count):
            event = CustomEvent(name=f"event {index}")
            event.data.struct_value.update({f"key{n}": [index, {"n": n}] for n in range(9)})
            await self.append(event)

    async def succeed(self) -> bool:
        """Finish the run; False when it may not."""
        async with self.database.raw_tenant(self.tenant_id) as tx:
            finished = RunFinished(state=RUN_STATE_SUCCEEDED)
            finished.output.string_value = "done"
            if await self.append_in(tx, finished) is None:
                return False
            return await runs.finish(tx, self.run_id, RunState.SUCCEEDED, output_json='"done"')


def grant_request(**changes: Any) -> grant_pb.CreateGrantRequest:
    """A valid request to grant the graph; keyword arguments replace fields."""
    fields = {
        "request_id": new_id(),
        "graphs": [f"graph:execute:{GRAPH}"],
        "account_id": new_id(),
        **changes,
    }
    return grant_pb.CreateGrantRequest(**fields)


def start_request(grant_id: str, **changes: Any) -> pb.StartRunRequest:
    """A valid request to run the graph; keyword arguments replace fields."""
    fields = {"request_id": new_id(), "graph_id": GRAPH, "grant_id": grant_id, **changes}
    return pb.StartRunRequest(**fields)


#: The loops without which nothing is streamed; the others act by themselves.
QUIET_LOOPS = frozenset({"listener", "tail"})


@pytest.fixture
async def world(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> World:
    """A running Executor that knows the graph, with all its loops."""
    return await _world(
        await database("executor", limits=LIMITS), serve_service, identities, loops=None
    )


@pytest.fixture
async def quiet_world(
    database: DatabaseFactory, serve_service: ServeService, identities: Identities
) -> World:
    """A running Executor that does nothing by itself: the test does what the loops would."""
    return await _world(
        await database("executor", limits=LIMITS), serve_service, identities, loops=QUIET_LOOPS
    )


async def _world(
    db: Database, serve_service: ServeService, identities: Identities, loops: frozenset[str] | None
) -> World:
    await publish(db, Graph(GRAPH, "r1"))
    drain, ledger, resources = Drain(), RecordingLedger(), OwnedResources()
    hints: asyncio.Queue[str] = asyncio.Queue()
    revocations: asyncio.Queue[str] = asyncio.Queue()

    async def wake_up(entries: list[Entry]) -> None:
        for entry in entries:
            hints.put_nowait(entry.payload["run_id"])

    async def revoke_leases(entries: list[Entry]) -> None:
        for entry in entries:
            revocations.put_nowait(entry.payload["grant_id"])

    async def hint(run_ids: list[str]) -> None:
        for run_id in run_ids:
            hints.put_nowait(run_id)

    around = Surroundings(
        database=db,
        listener=Listener(db.url),
        drain=drain,
        ledger=ledger,
        resources=resources,
        leases=resources,
        handlers={"wake_up": wake_up, "revoke_leases": revoke_leases},
        wake_up=hint,
        sign=signer(identities.keys["executor"]),
        watch_streams_max=20,
        change_streams_max=5,
        trace_url_template="https://traces.test/{trace_id}/tree",
    )
    whole = application(around, start_telemetry(TelemetrySettings(), "tests"))
    kept = {name: loop for name, loop in whole.loops.items() if loops is None or name in loops}
    served_application = replace(whole, loops=kept)
    served = await serve_service(
        "executor",
        served_application,
        drain=drain,
        default_deadline_seconds=PATIENCE.total_seconds(),
    )
    return World(
        db, served, served_application, identities, ledger, resources, drain, hints, revocations
    )


async def publish(db: Database, *published: Graph, tenant_id: str = EVERY_TENANT) -> None:
    """Publish graphs as a runner does when it starts."""
    async with db.raw_jobs() as tx:
        await graphs.publish(tx, tenant_id, published)
