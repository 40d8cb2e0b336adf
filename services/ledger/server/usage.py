"""RPCs of usage, run statements and the close of a run."""

from __future__ import annotations

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import entries as entry_messages
from services.ledger.convert import usage as usage_messages
from services.ledger.server.parts import Context, Parts, sequence_of
from services.runtime.caller import Caller, CallerKind, current_caller
from services.runtime.errors import denied
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class UsageRpcs:
    """RecordUsage, CloseRun, GetRunStatement."""

    _parts: Parts

    async def RecordUsage(
        self, request: pb.RecordUsageRequest, context: Context
    ) -> pb.RecordUsageResponse:
        caller = current_caller()
        units = [usage_messages.unit(each, caller.tenant_id) for each in request.units]
        return entry_messages.outcomes(await self._parts.recording.record(caller, units))

    async def GetRunStatement(
        self, request: pb.GetRunStatementRequest, context: Context
    ) -> pb.GetRunStatementResponse:
        caller = current_caller()
        _check_own_run(caller, request.run_id)
        bound_to = ["run", caller.tenant_id, request.run_id]
        after = sequence_of(decode_page_token(request.page_token, bound_to=bound_to)) or 0
        limit = page_limit(request.page_size)
        statement = await self._parts.statements.of_run(
            caller.tenant_id, request.run_id, after=after, limit=limit + 1
        )
        token = ""
        if len(statement.charges) > limit:
            del statement.charges[limit:]
            token = encode_page_token([statement.charges[-1].entry.sequence], bound_to=bound_to)
        return pb.GetRunStatementResponse(
            statement=entry_messages.run_statement(statement), next_page_token=token
        )

    async def CloseRun(self, request: pb.CloseRunRequest, context: Context) -> pb.CloseRunResponse:
        close = await self._parts.closing.close(
            current_caller().tenant_id,
            request.run_id,
            unit_count=request.unit_count,
            units_digest=request.units_digest,
        )
        return pb.CloseRunResponse(close=entry_messages.run_close(close))


def _check_own_run(caller: Caller, run_id: str) -> None:
    if caller.kind is CallerKind.RUN and (caller.run is None or caller.run.run_id != run_id):
        raise denied("CALLER_NOT_ALLOWED", "A run token reads its own run's statement alone.")
