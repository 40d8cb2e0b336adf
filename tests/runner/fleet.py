"""Grants and runs as the server makes them, for tests of the process that carries them."""

from __future__ import annotations

import uuid
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from cogni.executor.v1.run_event_pb2 import RunEvent, RunQueued
from services.executor.events import Draft, sealed_events
from services.executor.grants import GrantRequest, ToolPermission
from services.executor.runs import Options, Origin, Run, RunRequest, RunState
from services.executor.store import grants, interrupts, runs
from services.runtime.database import Database
from services.runtime.ids import new_id

TENANT = "t1"


@dataclass
class Fleet:
    """Makes grants and runs in one database, and reads back what became of them."""

    database: Database
    grant_ids: dict[str, str] = field(default_factory=dict)

    async def grant(self, *tools: str | ToolPermission, **fields: Any) -> str:
        """Grant every graph of the tests and these tools; returns the grant_id."""
        permissions = tuple(
            each if isinstance(each, ToolPermission) else ToolPermission(each) for each in tools
        )
        request = GrantRequest(
            display_name="test",
            graph_ids=fields.pop("graph_ids", ("any",)),
            tools=permissions,
            connection_ids=fields.pop("connection_ids", ()),
            account_id=fields.pop("account_id", "account-1"),
            budget=fields.pop("budget", None),
            expire_time=None,
            labels={},
        )
        grant_id = new_id()
        async with self.database.raw_tenant(TENANT) as tx:
            await grants.create(tx, grant_id, TENANT, new_id(), "alice", request)
        return grant_id

    async def revoke(self, grant_id: str) -> None:
        async with self.database.raw_tenant(TENANT) as tx:
            await grants.revoke(tx, grant_id, "enough", "alice")

    async def start(
        self,
        graph_id: str,
        grant_id: str | None = None,
        *,
        tenant_id: str = TENANT,
        thread_id: str | None = None,
        input: dict[str, Any] | None = None,
        **options: Any,
    ) -> str:
        """Queue a run; returns its run_id."""
        grant_id = grant_id or await self.grant()
        run_id = new_id()
        async with self.database.raw_tenant(TENANT, tenant_id) as tx:
            now = await tx.fetchval("SELECT cogni_now()")
            request = RunRequest(
                graph_id=graph_id,
                grant_id=grant_id,
                input=input or {},
                context={},
                thread_id=thread_id,
                revision=None,
                options=Options(**{"timeout": timedelta(minutes=5), **options}),
                labels={},
                origin=Origin(),
            )
            run = Run(
                run_id=run_id,
                tenant_id=tenant_id,
                graph_id=graph_id,
                revision="",
                thread_id=thread_id or str(uuid.uuid4()),
                grant_id=grant_id,
                owner="alice",
                state=RunState.QUEUED,
                attempt=0,
                options=request.options,
                origin=request.origin,
                labels={},
                create_time=now,
                update_time=now,
            )
            (first,) = sealed_events(1, 0, now, [Draft(RunQueued(cause=1))])
            await runs.create(tx, run, request, (first.type, first.payload))
        return run_id

    async def kill(self, run_id: str) -> None:
        """Leave the run as a killed process would: its lease over, nothing else touched."""
        await self.execute(
            "UPDATE run_leases SET epoch = epoch + 1, holder = 'dead',"
            " expire_time = cogni_now() - interval '1 hour' WHERE run_id = $1",
            run_id,
        )

    async def answer(self, run_id: str, interrupt_id: str, answer: Any) -> None:
        """Answer the run's only open question, as ResumeRun does."""
        async with self.database.raw_tenant(TENANT) as tx:
            await interrupts.answer(tx, run_id, interrupt_id, answer, "alice")
            await runs.queue(tx, run_id, "RESUMED")

    async def run(self, run_id: str) -> Run:
        async with self.database.raw_jobs() as tx:
            run = await runs.get(tx, run_id)
        assert run is not None
        return run

    async def events(self, run_id: str) -> list[RunEvent]:
        """The run's log, checked to be gapless."""
        async with self.database.raw_jobs() as tx:
            rows = await tx.fetch(
                "SELECT seq, type, payload FROM run_events WHERE run_id = $1 ORDER BY seq", run_id
            )
        parsed = [RunEvent.FromString(row["payload"]) for row in rows]
        assert [event.seq for event in parsed] == list(range(1, len(parsed) + 1))
        assert [row["type"] for row in rows] == [event.WhichOneof("event") for event in parsed]
        return parsed

    async def kinds(self, run_id: str) -> list[str]:
        return [str(event.WhichOneof("event")) for event in await self.events(run_id)]

    async def rows(self, statement: str, *arguments: object) -> list[Any]:
        async with self.database.raw_jobs() as tx:
            return list(await tx.fetch(statement, *arguments))

    async def execute(self, statement: str, *arguments: object) -> None:
        async with self.database.raw_jobs() as tx:
            await tx.execute(statement, *arguments)
