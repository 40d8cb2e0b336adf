"""A gRPC Executor for tests: real wire, idempotent StartRun, watch streams, and faults to order.

tests/executor/test_stand_in.py holds it against the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import grpc.aio
import jwt
from google.protobuf.any_pb2 import Any as AnyMessage
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from cogni.executor.v1 import (
    executor_service_pb2,
    executor_service_pb2_grpc,
    grant_pb2,
    grant_service_pb2,
    grant_service_pb2_grpc,
    run_pb2,
)
from services.runtime.ids import new_id

#: How a token is read whose signature is somebody else's business.
_UNVERIFIED = {"verify_signature": False, "verify_aud": False}
FINAL = (
    run_pb2.RUN_STATE_SUCCEEDED,
    run_pb2.RUN_STATE_FAILED,
    run_pb2.RUN_STATE_CANCELLED,
    run_pb2.RUN_STATE_DENIED,
)


class FakeExecutor(
    executor_service_pb2_grpc.ExecutorServiceServicer, grant_service_pb2_grpc.GrantServiceServicer
):
    """Runs and grants in memory. `down` makes every call UNAVAILABLE, `refusal` every start."""

    def __init__(self) -> None:
        self.runs: dict[str, run_pb2.Run] = {}
        self.by_request: dict[str, str] = {}
        self._contents: dict[str, tuple[Any, str]] = {}
        self.requests: list[executor_service_pb2.StartRunRequest] = []
        self.calls = 0
        self.cancelled: list[str] = []
        self.grants: dict[str, grant_pb2.Grant] = {}
        self.down = False
        self.lose_answers = 0
        self.refusal: tuple[grpc.StatusCode, str] | None = None
        self._run_changes: list[run_pb2.RunChange] = []
        self._grant_changes: list[grant_pb2.GrantChange] = []
        self._changed = asyncio.Condition()

    async def serve(self) -> tuple[grpc.aio.Server, str]:
        """Start on a free port and return the server and its address."""
        server = grpc.aio.server()
        executor_service_pb2_grpc.add_ExecutorServiceServicer_to_server(self, server)
        grant_service_pb2_grpc.add_GrantServiceServicer_to_server(self, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        return server, f"127.0.0.1:{port}"

    def grant(self, *graph_ids: str, owner: str = "alice", tenant: str = "acme") -> str:
        """Create a grant and return its id."""
        grant_id = new_id()
        self.grants[grant_id] = grant_pb2.Grant(
            grant_id=grant_id,
            tenant_id=tenant,
            owner=owner,
            state=grant_pb2.GRANT_STATE_ACTIVE,
            graphs=[f"graph:execute:{each}" for each in graph_ids or ("digest",)],
        )
        return grant_id

    async def revoke(self, grant_id: str) -> None:
        """Revoke a grant, deny its runs, and tell the watchers."""
        grant = self.grants[grant_id]
        grant.state = grant_pb2.GRANT_STATE_REVOKED
        change = grant_pb2.GrantChange(
            grant_id=grant_id, tenant_id=grant.tenant_id, state=grant.state
        )
        change.change_time.GetCurrentTime()
        async with self._changed:
            self._grant_changes.append(change)
            self._changed.notify_all()
        for run in list(self.runs.values()):
            if run.grant_id == grant_id and run.state not in FINAL:
                await self.end(run.run_id, run_pb2.RUN_STATE_DENIED)

    async def end(self, run_id: str, state: Any = run_pb2.RUN_STATE_SUCCEEDED) -> None:
        """Bring a run to its end and tell the watchers."""
        self.runs[run_id].state = state
        await self._tell(self.runs[run_id])

    def end_unheard(self, run_id: str) -> None:
        """Bring a run to its end without a word."""
        self.runs[run_id].state = run_pb2.RUN_STATE_SUCCEEDED

    async def StartRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        self.requests.append(request)
        if self.refusal is not None:
            await _abort(context, *self.refusal)
        run_id = self.by_request.get(request.request_id)
        if run_id is None:
            run_id = await self._start(request, context)
        elif self._contents[request.request_id] != (request, _claim(context, "on_behalf_of")):
            await _abort(context, grpc.StatusCode.ALREADY_EXISTS, "REQUEST_ID_REUSED")
        if self.lose_answers:
            self.lose_answers -= 1
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the answer was lost")
        return executor_service_pb2.StartRunResponse(run=self.runs[run_id])

    async def _start(self, request: Any, context: Any) -> str:
        grant = await self._found(self.grants, request.grant_id, context)
        owner = _claim(context, "on_behalf_of")
        for refused, reason in (
            (grant.state == grant_pb2.GRANT_STATE_REVOKED, "GRANT_REVOKED"),
            (grant.owner != owner, "GRANT_NOT_OWNED"),
            (f"graph:execute:{request.graph_id}" not in grant.graphs, "GRAPH_NOT_GRANTED"),
        ):
            if refused:
                await _abort(context, grpc.StatusCode.PERMISSION_DENIED, reason)
        run_id = new_id()
        self.by_request[request.request_id] = run_id
        self._contents[request.request_id] = (request, owner)
        self.runs[run_id] = run_pb2.Run(
            run_id=run_id,
            tenant_id=grant.tenant_id,
            state=run_pb2.RUN_STATE_QUEUED,
            origin=request.origin,
            graph_id=request.graph_id,
            grant_id=request.grant_id,
        )
        await self._tell(self.runs[run_id])
        return run_id

    async def GetRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        run = await self._found(self.runs, request.run_id, context)
        return executor_service_pb2.GetRunResponse(run=run)

    async def CancelRun(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        run = await self._found(self.runs, request.run_id, context)
        self.cancelled.append(request.run_id)
        if run.state not in FINAL:
            await self.end(request.run_id, run_pb2.RUN_STATE_CANCELLED)
        return executor_service_pb2.CancelRunResponse(run=run)

    async def GetGrant(self, request: Any, context: Any) -> Any:  # noqa: N802
        await self._check(context)
        grant = await self._found(self.grants, request.grant_id, context)
        return grant_service_pb2.GetGrantResponse(grant=grant)

    async def _found(self, kept: dict[str, Any], id: str, context: Any) -> Any:
        """What the caller's tenant has under the id; aborts when that is nothing."""
        found = kept.get(id)
        if found is None or found.tenant_id != _claim(context, "tenant"):
            await _abort(context, grpc.StatusCode.NOT_FOUND, "NOT_FOUND")
        return found

    async def WatchRuns(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for changes, cursor in self._watch(self._run_changes, request.cursor, context):
            answer = executor_service_pb2.WatchRunsResponse(changes=changes, cursor=cursor)
            answer.watermark_time.GetCurrentTime()
            yield answer

    async def WatchGrants(self, request: Any, context: Any) -> AsyncIterator[Any]:  # noqa: N802
        async for changes, cursor in self._watch(self._grant_changes, request.cursor, context):
            answer = grant_service_pb2.WatchGrantsResponse(changes=changes, cursor=cursor)
            answer.watermark_time.GetCurrentTime()
            yield answer

    async def _watch(
        self, log: list[Any], cursor: str, context: Any
    ) -> AsyncIterator[tuple[list[Any], str]]:
        await self._check(context)
        if not (cursor or "0").isdecimal():
            await _abort(context, grpc.StatusCode.OUT_OF_RANGE, "CURSOR_INVALID")
        place = int(cursor or 0)
        while True:
            async with self._changed:
                await self._changed.wait_for(lambda place=place: len(log) > place)
            changes = log[place : place + 100]
            place += len(changes)
            yield changes, str(place)

    async def _tell(self, run: run_pb2.Run) -> None:
        change = run_pb2.RunChange(
            run_id=run.run_id, tenant_id=run.tenant_id, state=run.state, origin=run.origin
        )
        change.change_time.GetCurrentTime()
        async with self._changed:
            self._run_changes.append(change)
            self._changed.notify_all()

    async def _check(self, context: Any) -> None:
        self.calls += 1
        if self.down:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "down")


def _claim(context: Any, name: str) -> str:
    """A claim of the token that the Scheduler comes with, "" for one that it has not."""
    [bearer] = [value for key, value in context.invocation_metadata() if key == "authorization"]
    claims = jwt.decode(bearer.split()[1], options=_UNVERIFIED)
    return str(claims.get(name, ""))


async def _abort(context: Any, code: grpc.StatusCode, reason: str) -> None:
    detail = AnyMessage()
    detail.Pack(error_details_pb2.ErrorInfo(reason=reason, domain="cogni"))
    status = status_pb2.Status(code=code.value[0], message=f"said {reason}", details=[detail])
    await context.abort_with_status(rpc_status.to_status(status))
