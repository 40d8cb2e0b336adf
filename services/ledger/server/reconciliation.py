"""RPCs that compare: with what the Executor committed, and with outside accounts."""

from __future__ import annotations

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import reconciliation as messages
from services.ledger.server.parts import Context, Parts, time_and_id
from services.runtime.caller import current_caller
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class ReconciliationRpcs:
    """ListGaps, ReconcileUsage."""

    _parts: Parts

    async def ListGaps(self, request: pb.ListGapsRequest, context: Context) -> pb.ListGapsResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["gaps", tenant_id, request.kind]
        before = time_and_id(decode_page_token(request.page_token, bound_to=bound_to))
        limit = page_limit(request.page_size)
        found = await self._parts.completeness.list_page(tenant_id, request.kind, before, limit + 1)
        response = pb.ListGapsResponse(gaps=[messages.gap(each) for each in found[:limit]])
        if len(found) > limit:
            last = found[limit - 1]
            key = [last.detect_time.isoformat(), last.run_id]
            response.next_page_token = encode_page_token(key, bound_to=bound_to)
        return response

    async def ReconcileUsage(
        self, request: pb.ReconcileUsageRequest, context: Context
    ) -> pb.ReconcileUsageResponse:
        result = await self._parts.reconciling.compare(
            current_caller().tenant_id,
            messages.scope(request),
            messages.outside_rows(request),
            messages.tolerance(request),
        )
        return messages.reconciled(result, request.source)
