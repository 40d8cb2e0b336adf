"""RPCs that read the log."""

from __future__ import annotations

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import entries as entry_messages
from services.ledger.server.parts import Context, Parts
from services.runtime.caller import current_caller
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class LogRpcs:
    """ListEntries."""

    _parts: Parts

    async def ListEntries(
        self, request: pb.ListEntriesRequest, context: Context
    ) -> pb.ListEntriesResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["entries", tenant_id, request.account_id, request.run_id, request.kind]
        before = decode_page_token(request.page_token, bound_to=bound_to) or [None]
        limit = page_limit(request.page_size)
        found = await self._parts.statements.list_entries(
            tenant_id,
            kind=request.kind,
            account_id=request.account_id,
            run_id=request.run_id,
            before=before[0],
            limit=limit + 1,
        )
        response = pb.ListEntriesResponse(
            entries=[entry_messages.entry(each) for each in found[:limit]]
        )
        if len(found) > limit:
            key = [found[limit - 1].sequence]
            response.next_page_token = encode_page_token(key, bound_to=bound_to)
        return response
