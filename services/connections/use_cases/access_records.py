"""Reads a tenant's access log, page by page."""

from __future__ import annotations

from services.connections.access_log import Head, Record, RecordFilter
from services.connections.store import access_log
from services.runtime.caller import Caller
from services.runtime.database import Database
from services.runtime.paging import decode_page_token, encode_page_token, page_limit


async def list_records(
    database: Database,
    caller: Caller,
    wanted: RecordFilter,
    *,
    oldest_first: bool,
    page_size: int,
    page_token: str,
) -> tuple[list[Record], str, Head]:
    """A page, the token of the next, and the log's end when the page was read."""
    bound_to = ["ListAccessRecords", caller.tenant_id, repr(wanted), oldest_first]
    key = decode_page_token(page_token, bound_to=bound_to)
    size = page_limit(page_size)
    async with database.tenant(caller.tenant_id) as tx:
        # The head first: what is appended meanwhile is beyond it, never missing before it.
        head = await access_log.read_head(tx, caller.tenant_id)
        found = await access_log.read_records(
            tx,
            caller.tenant_id,
            wanted,
            after_sequence=key[0] if key else None,
            oldest_first=oldest_first,
            limit=size + 1,
        )
    if len(found) <= size:
        return found, "", head
    page = found[:size]
    return page, encode_page_token([page[-1].sequence], bound_to=bound_to), head
