"""The Executor through its generated stubs."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import datetime
from decimal import Decimal

import grpc.aio
from google.protobuf.timestamp_pb2 import Timestamp

from cogni.executor.v1 import (
    executor_service_pb2,
    executor_service_pb2_grpc,
    grant_pb2,
    grant_service_pb2,
    grant_service_pb2_grpc,
    run_pb2,
)
from cogni.type.v1.amount_pb2 import Amount
from services.runtime.caller import ALL_TENANTS
from services.runtime.channels import acting_for
from services.runtime.errors import ErrorKind, PeerError
from services.runtime.jsonvalues import to_struct
from services.scheduler.convert.wire import from_timestamp, to_duration, to_timestamp
from services.scheduler.runs import (
    CursorLostError,
    ExecutorUnavailableError,
    GrantBatch,
    GrantChange,
    GrantView,
    RunBatch,
    RunChange,
    RunRefusedError,
    RunView,
    StartOrder,
)
from services.scheduler.schedules import RunLimits
from services.scheduler.slot_records import SlotKey

_SERVICE = "/cogni.executor.v1.ExecutorService"
#: Methods that gRPC may repeat by itself: all of them, since StartRun carries a request_id.
SAFE_METHODS = (
    f"{_SERVICE}/StartRun",
    f"{_SERVICE}/GetRun",
    f"{_SERVICE}/CancelRun",
    "/cogni.executor.v1.GrantService/GetGrant",
)
_GRAPH_PREFIX = "graph:execute:"
# A refusal of these kinds lies in the request and stays, whenever it is repeated. What is wrong
# with our own token (PERMISSION_DENIED of these reasons, UNAUTHENTICATED) an operator repairs.
_FINAL_KINDS = frozenset(
    {
        ErrorKind.INVALID_ARGUMENT,
        ErrorKind.NOT_FOUND,
        ErrorKind.ALREADY_EXISTS,
        ErrorKind.PERMISSION_DENIED,
        ErrorKind.FAILED_PRECONDITION,
        ErrorKind.OUT_OF_RANGE,
    }
)
_OUR_OWN_REASONS = frozenset({"", "CALLER_NOT_ALLOWED", "SCOPE_MISSING"})


class ExecutorClient:
    """The Executor behind one channel made by `service_channel`."""

    def __init__(self, channel: grpc.aio.Channel) -> None:
        self._runs = executor_service_pb2_grpc.ExecutorServiceStub(channel)
        self._grants = grant_service_pb2_grpc.GrantServiceStub(channel)

    async def start_run(self, order: StartOrder) -> RunView:
        """Start the run of a slot, or find it started; raises RunRefusedError."""
        with _refusals(), acting_for(order.tenant_id, order.on_behalf_of):
            answer = await self._runs.StartRun(_start_request(order))
        return _run_view(answer.run)

    async def get_run(self, tenant_id: str, run_id: str) -> RunView | None:
        """The run as it is now, or None when there is none."""
        try:
            with _refusals(), acting_for(tenant_id):
                answer = await self._runs.GetRun(executor_service_pb2.GetRunRequest(run_id=run_id))
        except RunRefusedError as refused:
            if refused.reason != "NOT_FOUND":
                raise
            return None
        return _run_view(answer.run)

    async def cancel_run(self, tenant_id: str, run_id: str, comment: str) -> None:
        """Ask for a run to be cancelled because another takes its place."""
        request = executor_service_pb2.CancelRunRequest(
            run_id=run_id, reason=run_pb2.CANCEL_REASON_SUPERSEDED, comment=comment
        )
        with _refusals(), acting_for(tenant_id):
            await self._runs.CancelRun(request)

    async def get_grant(self, tenant_id: str, grant_id: str) -> GrantView | None:
        """The grant as it is now, or None when there is none."""
        request = grant_service_pb2.GetGrantRequest(grant_id=grant_id)
        try:
            with _refusals(), acting_for(tenant_id):
                grant = (await self._grants.GetGrant(request)).grant
        except RunRefusedError as refused:
            if refused.reason != "NOT_FOUND":
                raise
            return None
        graphs = frozenset(each.removeprefix(_GRAPH_PREFIX) for each in grant.graphs)
        return GrantView(grant.grant_id, _grant_state(grant.state), graphs, grant.owner)

    async def watch_runs(self, cursor: str) -> AsyncIterator[RunBatch]:
        """Changes of every tenant's runs that slots started; raises CursorLostError."""
        request = executor_service_pb2.WatchRunsRequest(cursor=cursor)
        with _refusals():
            # Only the call itself: a generator that yields inside would leak who acts.
            with acting_for(ALL_TENANTS):
                answers = self._runs.WatchRuns(request)
            async for answer in answers:
                changes = tuple(_run_change(each) for each in answer.changes if _of_slot(each))
                watermark = _watermark(answer.watermark_time)
                yield RunBatch(changes, answer.cursor, watermark)

    async def watch_grants(self, cursor: str) -> AsyncIterator[GrantBatch]:
        """Changes of every tenant's grants; raises CursorLostError."""
        request = grant_service_pb2.WatchGrantsRequest(cursor=cursor)
        with _refusals():
            with acting_for(ALL_TENANTS):
                answers = self._grants.WatchGrants(request)
            async for answer in answers:
                changes = tuple(_grant_change(each) for each in answer.changes)
                watermark = _watermark(answer.watermark_time)
                yield GrantBatch(changes, answer.cursor, watermark)


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except PeerError as error:
        if error.reason == "CURSOR_INVALID":
            raise CursorLostError(error.message) from error
        if error.kind in _FINAL_KINDS and error.reason not in _OUR_OWN_REASONS:
            raise RunRefusedError(error.reason, error.message) from error
        raise ExecutorUnavailableError(
            f"The Executor did not take the call ({error.kind}); it is tried again."
        ) from error


def _start_request(order: StartOrder) -> executor_service_pb2.StartRunRequest:
    template, key = order.template, order.key
    return executor_service_pb2.StartRunRequest(
        request_id=key.start_request_id,
        graph_id=template.graph_id,
        grant_id=template.grant_id,
        input=to_struct(template.input),
        revision=template.revision,
        options=_options(template.limits),
        labels=template.labels,
        origin=run_pb2.RunOrigin(
            schedule=run_pb2.ScheduleOrigin(
                schedule_id=key.schedule_id,
                scheduled_time=to_timestamp(key.scheduled_time),
                slot_id=key.start_request_id,
            )
        ),
        context=to_struct(template.context) if template.context else None,
    )


def _options(limits: RunLimits) -> run_pb2.RunOptions:
    cost = None
    if limits.max_cost_asset is not None:
        cost = Amount(asset=limits.max_cost_asset, value=limits.max_cost_value or "")
    return run_pb2.RunOptions(
        max_attempts=limits.max_attempts,
        timeout=to_duration(limits.timeout),
        max_steps=limits.max_steps,
        max_cost=cost,
    )


def _run_view(run: run_pb2.Run) -> RunView:
    costs = {amount.asset: Decimal(amount.value) for amount in run.usage.costs}
    return RunView(run.run_id, _run_state(run.state), costs)


def _run_state(number: run_pb2.RunState.ValueType) -> str:
    return run_pb2.RunState.Name(number).removeprefix("RUN_STATE_")


def _grant_state(number: grant_pb2.GrantState.ValueType) -> str:
    return grant_pb2.GrantState.Name(number).removeprefix("GRANT_STATE_")


def _of_slot(change: run_pb2.RunChange) -> bool:
    return change.origin.WhichOneof("cause") == "schedule"


def _run_change(change: run_pb2.RunChange) -> RunChange:
    origin = change.origin.schedule
    key = SlotKey(origin.schedule_id, from_timestamp(origin.scheduled_time))
    return RunChange(key, RunView(change.run_id, _run_state(change.state)), change.tenant_id)


def _grant_change(change: grant_pb2.GrantChange) -> GrantChange:
    expires = change.HasField("expire_time")
    return GrantChange(
        grant_id=change.grant_id,
        tenant_id=change.tenant_id,
        state=_grant_state(change.state),
        expire_time=from_timestamp(change.expire_time) if expires else None,
        change_time=from_timestamp(change.change_time),
    )


def _watermark(stamp: Timestamp) -> datetime | None:
    return from_timestamp(stamp) if stamp.seconds else None
