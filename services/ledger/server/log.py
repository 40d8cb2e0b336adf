"""RPCs that read the log."""

from __future__ import annotations

from collections.abc import AsyncIterator

from cogni.ledger.v1 import ledger_service_pb2 as pb
from services.ledger.convert import entries as entry_messages
from services.ledger.convert.scalars import moment_of
from services.ledger.server.parts import Context, Parts, sequence_of
from services.ledger.store.entries import EntryFilter
from services.runtime.caller import current_caller
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


class LogRpcs:
    """ListEntries, GetStatement, WatchEntries, ExportEntries."""

    _parts: Parts

    async def ListEntries(
        self, request: pb.ListEntriesRequest, context: Context
    ) -> pb.ListEntriesResponse:
        tenant_id = current_caller().tenant_id
        bound_to = ["entries", tenant_id, request.account_id, request.run_id, request.kind]
        before = sequence_of(decode_page_token(request.page_token, bound_to=bound_to))
        limit = page_limit(request.page_size)
        found = await self._parts.statements.list_entries(
            tenant_id,
            kind=request.kind,
            account_id=request.account_id,
            run_id=request.run_id,
            before=before,
            limit=limit + 1,
        )
        response = pb.ListEntriesResponse(
            entries=[entry_messages.entry(each) for each in found[:limit]]
        )
        if len(found) > limit:
            key = [found[limit - 1].sequence]
            response.next_page_token = encode_page_token(key, bound_to=bound_to)
        return response

    async def GetStatement(
        self, request: pb.GetStatementRequest, context: Context
    ) -> pb.GetStatementResponse:
        tenant_id = current_caller().tenant_id
        start_time = moment_of(request.start_time)
        end_time = moment_of(request.end_time) if request.HasField("end_time") else None
        ends = end_time.isoformat() if end_time else ""
        bound_to = ["statement", tenant_id, request.account_id, start_time.isoformat(), ends]
        after = sequence_of(decode_page_token(request.page_token, bound_to=bound_to)) or 0
        limit = page_limit(request.page_size)
        statement = await self._parts.statements.of_account(
            tenant_id, request.account_id, start_time, end_time, after=after, limit=limit + 1
        )
        token = ""
        if len(statement.entries) > limit:
            del statement.entries[limit:]
            token = encode_page_token([statement.entries[-1].sequence], bound_to=bound_to)
        return pb.GetStatementResponse(
            statement=entry_messages.account_statement(statement), next_page_token=token
        )

    async def WatchEntries(
        self, request: pb.WatchEntriesRequest, context: Context
    ) -> AsyncIterator[pb.WatchEntriesResponse]:
        wanted = EntryFilter(
            current_caller().tenant_id,
            request.after_sequence,
            account_id=request.account_id,
            run_id=request.run_id,
        )
        async for news in self._parts.following.watch(wanted):
            yield pb.WatchEntriesResponse(
                entries=[entry_messages.entry(each) for each in news.entries],
                sequence=news.sequence,
                resume=news.resume,
            )

    async def ExportEntries(
        self, request: pb.ExportEntriesRequest, context: Context
    ) -> AsyncIterator[pb.ExportEntriesResponse]:
        wanted = EntryFilter(
            current_caller().tenant_id,
            request.after_sequence,
            request.last_sequence,
            request.account_id,
            request.run_id,
            moment_of(request.start_time) if request.HasField("start_time") else None,
            moment_of(request.end_time) if request.HasField("end_time") else None,
        )
        as_csv = request.format == pb.EXPORT_FORMAT_CSV
        async for chunk in self._parts.following.export(wanted, as_csv=as_csv):
            yield pb.ExportEntriesResponse(
                chunk=chunk.data,
                last_sequence=chunk.last_sequence,
                exported_count=chunk.exported_count,
                total_count=chunk.total_count,
            )
