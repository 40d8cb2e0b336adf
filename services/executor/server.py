"""The Executor's servicers: they translate and delegate."""

from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import grpc
import grpc.aio

from cogni.executor.v1 import executor_service_pb2 as executor
from cogni.executor.v1 import executor_service_pb2_grpc as executor_grpc
from cogni.executor.v1 import grant_service_pb2 as grant_messages
from cogni.executor.v1 import grant_service_pb2_grpc as grant_grpc
from cogni.executor.v1 import runner_service_pb2 as runner
from cogni.executor.v1 import runner_service_pb2_grpc as runner_grpc
from services.executor.convert import audit as audit_records
from services.executor.convert import filters, grants, graphs, runs
from services.executor.convert.enums import cancel_reason_of
from services.executor.convert.times import timestamp
from services.executor.events import spliced
from services.executor.store import changes
from services.executor.use_cases import grant, read, watch_run
from services.executor.use_cases.backing import Backing
from services.executor.use_cases.delete_run import delete_run
from services.executor.use_cases.grant import Grantable, Leases
from services.executor.use_cases.mint_run_token import Sign, mint_run_token
from services.executor.use_cases.replay_run import Replay, replay_run
from services.executor.use_cases.resume_run import Answer, resume_run
from services.executor.use_cases.start_run import start_run
from services.executor.use_cases.stop_run import cancel_run
from services.executor.use_cases.tail import Tail
from services.executor.use_cases.watch_changes import ChangeWatch, Stream
from services.runtime.caller import CallerKind, current_caller
from services.runtime.drain import Drain
from services.runtime.errors import ErrorKind, ServiceError, Violation, invalid

EXECUTOR_SERVICE = "cogni.executor.v1.ExecutorService"

Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"


@dataclass(frozen=True)
class Watching:
    """What the streams of one process share."""

    tail: Tail
    changes: ChangeWatch
    drain: Drain


class ExecutorServicer(executor_grpc.ExecutorServiceServicer):
    """Runs, their events, and the graphs they execute."""

    def __init__(self, on: Backing, watching: Watching, trace_url_template: str) -> None:
        self._on = on
        self._watching = watching
        self._run = partial(runs.run_to_proto, trace_url_template=trace_url_template)

    async def StartRun(
        self, request: executor.StartRunRequest, context: Context
    ) -> executor.StartRunResponse:
        caller = current_caller()
        if caller.kind is CallerKind.USER and request.HasField("origin"):
            raise invalid(Violation("origin", "is set by services only"))
        run = await start_run(self._on, caller, request.request_id, runs.run_request(request))
        return executor.StartRunResponse(run=self._run(run))

    async def GetRun(
        self, request: executor.GetRunRequest, context: Context
    ) -> executor.GetRunResponse:
        tenant_id = current_caller().tenant_id
        run = await read.get_run(self._on.database, tenant_id, request.run_id)
        return executor.GetRunResponse(run=self._run(run))

    async def ListRuns(
        self, request: executor.ListRunsRequest, context: Context
    ) -> executor.ListRunsResponse:
        page = await read.list_runs(
            self._on.database,
            current_caller().tenant_id,
            read.Wanted(request.page_size, request.page_token),
            filters.run_filter(request),
        )
        return executor.ListRunsResponse(
            runs=[self._run(run, whole=False) for run in page.items],
            next_page_token=page.next_page_token,
        )

    # The log's bytes are sent as they were stored, so this handler yields serialized messages:
    # see `add_executor_to_server`.
    async def WatchRun(  # type: ignore[override]
        self, request: executor.WatchRunRequest, context: Context
    ) -> AsyncIterator[bytes]:
        batches = watch_run.watch_run(
            self._on.database,
            self._watching.tail,
            self._watching.drain,
            current_caller().tenant_id,
            request.run_id,
            request.after_seq,
        )
        async with aclosing(batches) as stream:  # type: ignore[type-var]
            async for batch in stream:
                rest = executor.WatchRunResponse(
                    last_seq=batch.last_seq, newest_seq=batch.newest_seq, resume=batch.resume
                )
                yield spliced(batch.payloads) + rest.SerializeToString()

    async def WatchRuns(
        self, request: executor.WatchRunsRequest, context: Context
    ) -> AsyncIterator[executor.WatchRunsResponse]:
        wanted = filters.run_change_filter(request)

        async def read_next(tx: Any, position: Any, limit: int) -> Any:
            return await changes.read_runs(tx, wanted, position, limit)

        batches = self._watching.changes.watch(
            Stream("runs", read_next),
            current_caller().tenant_id,
            request.cursor,
            from_now=request.from_now,
        )
        async with aclosing(batches) as stream:  # type: ignore[type-var]
            async for batch in stream:
                yield executor.WatchRunsResponse(
                    changes=[runs.change_to_proto(each) for each in batch.changes],
                    cursor=batch.cursor,
                    watermark_time=timestamp(batch.watermark_time),
                    resume=batch.resume,
                )

    async def CancelRun(
        self, request: executor.CancelRunRequest, context: Context
    ) -> executor.CancelRunResponse:
        reason = cancel_reason_of(request.reason)
        run = await cancel_run(self._on, current_caller(), request.run_id, reason, request.comment)
        return executor.CancelRunResponse(run=self._run(run))

    async def ResumeRun(
        self, request: executor.ResumeRunRequest, context: Context
    ) -> executor.ResumeRunResponse:
        answer = Answer(*runs.answer_of(request))
        run = await resume_run(
            self._on, current_caller(), request.run_id, request.interrupt_id, answer
        )
        return executor.ResumeRunResponse(run=self._run(run))

    async def ReplayRun(
        self, request: executor.ReplayRunRequest, context: Context
    ) -> executor.ReplayRunResponse:
        if request.checkpoint_id or request.mode == executor.REPLAY_MODE_RECORDED:
            raise ServiceError(
                ErrorKind.UNIMPLEMENTED,
                "NOT_IMPLEMENTED",
                "Replaying from a checkpoint or from a record is not built yet; replay live, "
                "from the input.",
            )
        replay = Replay(
            request.run_id,
            request.grant_id or None,
            request.revision or None,
            dict(request.labels),
        )
        run = await replay_run(self._on, current_caller(), request.request_id, replay)
        return executor.ReplayRunResponse(run=self._run(run))

    async def DeleteRun(
        self, request: executor.DeleteRunRequest, context: Context
    ) -> executor.DeleteRunResponse:
        await delete_run(self._on.database, current_caller(), request.run_id)
        return executor.DeleteRunResponse()

    async def ListGraphs(
        self, request: executor.ListGraphsRequest, context: Context
    ) -> executor.ListGraphsResponse:
        wanted = read.Wanted(request.page_size, request.page_token)
        page = await read.list_graphs(self._on.database, current_caller().tenant_id, wanted)
        return executor.ListGraphsResponse(
            graphs=[graphs.graph_to_proto(graph, whole=False) for graph in page.items],
            next_page_token=page.next_page_token,
        )

    async def GetGraph(
        self, request: executor.GetGraphRequest, context: Context
    ) -> executor.GetGraphResponse:
        tenant_id = current_caller().tenant_id
        graph = await read.get_graph(
            self._on.database, tenant_id, request.graph_id, request.revision
        )
        return executor.GetGraphResponse(graph=graphs.graph_to_proto(graph, whole=True))

    async def ListAuditRecords(
        self, request: executor.ListAuditRecordsRequest, context: Context
    ) -> executor.ListAuditRecordsResponse:
        page = await read.list_audit_records(
            self._on.database,
            current_caller().tenant_id,
            read.Wanted(request.page_size, request.page_token),
            filters.audit_filter(request),
        )
        return executor.ListAuditRecordsResponse(
            audit_records=[audit_records.record_to_proto(each) for each in page.items],
            next_page_token=page.next_page_token,
        )


class GrantServicer(grant_grpc.GrantServiceServicer):
    """The grants that runs act under."""

    def __init__(
        self, on: Backing, watching: Watching, resources: Grantable, leases: Leases
    ) -> None:
        self._on = on
        self._watching = watching
        self._resources = resources
        self._leases = leases

    async def CreateGrant(
        self, request: grant_messages.CreateGrantRequest, context: Context
    ) -> grant_messages.CreateGrantResponse:
        created = await grant.create_grant(
            self._on,
            self._resources,
            current_caller(),
            request.request_id,
            grants.grant_request(request),
        )
        return grant_messages.CreateGrantResponse(grant=grants.grant_to_proto(created))

    async def GetGrant(
        self, request: grant_messages.GetGrantRequest, context: Context
    ) -> grant_messages.GetGrantResponse:
        found = await grant.get_grant(self._on, current_caller().tenant_id, request.grant_id)
        return grant_messages.GetGrantResponse(grant=grants.grant_to_proto(found))

    async def ListGrants(
        self, request: grant_messages.ListGrantsRequest, context: Context
    ) -> grant_messages.ListGrantsResponse:
        page = await read.list_grants(
            self._on.database,
            current_caller().tenant_id,
            read.Wanted(request.page_size, request.page_token),
            filters.grant_filter(request),
        )
        return grant_messages.ListGrantsResponse(
            grants=[grants.grant_to_proto(each, whole=False) for each in page.items],
            next_page_token=page.next_page_token,
        )

    async def RevokeGrant(
        self, request: grant_messages.RevokeGrantRequest, context: Context
    ) -> grant_messages.RevokeGrantResponse:
        revoked = await grant.revoke_grant(
            self._on, self._leases, current_caller(), request.grant_id, request.comment
        )
        return grant_messages.RevokeGrantResponse(grant=grants.grant_to_proto(revoked))

    async def WatchGrants(
        self, request: grant_messages.WatchGrantsRequest, context: Context
    ) -> AsyncIterator[grant_messages.WatchGrantsResponse]:
        batches = self._watching.changes.watch(
            Stream("grants", changes.read_grants),
            current_caller().tenant_id,
            request.cursor,
            from_now=request.from_now,
        )
        async with aclosing(batches) as stream:  # type: ignore[type-var]
            async for batch in stream:
                yield grant_messages.WatchGrantsResponse(
                    changes=[grants.change_to_proto(each) for each in batch.changes],
                    cursor=batch.cursor,
                    watermark_time=timestamp(batch.watermark_time),
                    resume=batch.resume,
                )


class RunnerServicer(runner_grpc.RunnerServiceServicer):
    """What runners, and nobody else, call."""

    def __init__(self, on: Backing, sign: Sign) -> None:
        self._on = on
        self._sign = sign

    async def MintRunToken(
        self, request: runner.MintRunTokenRequest, context: Context
    ) -> runner.MintRunTokenResponse:
        minted = await mint_run_token(
            self._on.database, self._sign, current_caller(), request.run_id, request.epoch
        )
        return runner.MintRunTokenResponse(
            token=minted.token, expire_time=timestamp(minted.expire_time)
        )


def add_executor_to_server(servicer: ExecutorServicer, server: Any) -> None:
    """Register the servicer as the generated function does, except for WatchRun's serializer.

    A WatchRunResponse that was parsed and serialized again could come out with other bytes than
    were stored: protobuf writes maps, and so every Struct, in any order.
    """
    sender: Any = _Sender(server, servicer)
    executor_grpc.add_ExecutorServiceServicer_to_server(servicer, sender)


class _Sender:
    """Passes registrations on to a server, with one handler exchanged."""

    def __init__(self, server: Any, servicer: ExecutorServicer) -> None:
        self._server = server
        self._watch_run: Any = grpc.unary_stream_rpc_method_handler(
            servicer.WatchRun,
            request_deserializer=executor.WatchRunRequest.FromString,
            response_serializer=None,
        )

    def add_generic_rpc_handlers(self, handlers: tuple[grpc.GenericRpcHandler, ...]) -> None:
        """Left out: `add_registered_method_handlers` makes the generic handler too."""

    def add_registered_method_handlers(
        self, service: str, handlers: Mapping[str, "grpc.RpcMethodHandler[Any, Any]"]
    ) -> None:
        """Register the handlers under both ways in which a server looks them up."""
        changed = {**handlers, "WatchRun": self._watch_run}
        generic = grpc.method_handlers_generic_handler(service, changed)
        self._server.add_generic_rpc_handlers((generic,))
        self._server.add_registered_method_handlers(service, changed)
