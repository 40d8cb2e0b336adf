"""Streams a tenant's log as it grows, and writes it out as a file."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import datetime

from services.ledger.entries import Entry
from services.ledger.money import format_minor
from services.ledger.proving import Head, Proving
from services.ledger.store import entries, log
from services.ledger.store.entries import EntryFilter
from services.runtime.database import Database
from services.runtime.drain import Drain, stream_drained
from services.runtime.errors import ErrorKind, ServiceError
from services.runtime.listen import Listener

_BATCH_ENTRIES_MAX = 256
# A chunk is sent once it has this much; a batch more stays under the 1 MiB that is promised.
_CHUNK_BYTES = 256 * 1024
_HEARTBEAT_SECONDS = 15.0
_POLL_SECONDS = 1.0

_CSV_COLUMNS = (
    "sequence",
    "record_time",
    "occur_time",
    "kind",
    "debit_account_id",
    "credit_account_id",
    "asset",
    "amount",
    "debit_balance",
    "credit_balance",
    "source_system",
    "source_reference",
    "run_id",
    "attempt",
    "hold_id",
    "corrects_sequence",
    "description",
)


@dataclass(frozen=True, slots=True)
class News:
    """What a watcher is told: entries up to `sequence`; none is a heartbeat."""

    entries: list[Entry]
    sequence: int
    resume: bool = False


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of an export with its progress."""

    data: bytes
    last_sequence: int
    exported_count: int
    total_count: int


class Following:
    """What WatchEntries and ExportEntries do. Reads in short transactions, whoever is slow."""

    def __init__(
        self,
        database: Database,
        listener: Listener,
        proving: Proving,
        drain: Drain,
        monotonic: Callable[[], float],
    ) -> None:
        self._database = database
        self._listener = listener
        self._proving = proving
        self._drain = drain
        self._monotonic = monotonic

    async def watch(self, wanted: EntryFilter) -> AsyncIterator[News]:
        """Yield entries after `wanted.after` for ever, with heartbeats; end when draining."""
        cursor = wanted.after
        size = await self._size(wanted.tenant_id)
        if cursor > size:
            raise ServiceError(
                ErrorKind.OUT_OF_RANGE,
                "CURSOR_INVALID",
                f"The log ends with entry {size}; watch from there or before.",
                metadata={"sequence": str(size)},
            )
        spoken = self._monotonic()
        wakeups = self._listener.wakeups(log.ENTRIES_CHANNEL, poll_seconds=_POLL_SECONDS)
        async for wakeup in wakeups:
            if self._drain.draining.is_set():
                yield News([], cursor, resume=True)
                raise stream_drained()
            if wakeup.anything or _concerns(wakeup.payloads, wanted.tenant_id):
                async for news in self._catch_up(wanted, cursor):
                    cursor = news.sequence
                    if news.entries:
                        yield news
                        spoken = self._monotonic()
            if self._monotonic() - spoken >= _HEARTBEAT_SECONDS:
                yield News([], cursor)
                spoken = self._monotonic()

    async def _catch_up(self, wanted: EntryFilter, cursor: int) -> AsyncIterator[News]:
        size = await self._size(wanted.tenant_id)
        while cursor < size:
            found = await self._read(wanted.between(cursor, size))
            cursor = size if len(found) < _BATCH_ENTRIES_MAX else found[-1].sequence
            yield News(found, cursor)

    async def export(self, wanted: EntryFilter, *, as_csv: bool) -> AsyncIterator[Chunk]:
        """Yield a file of entries, chunk by chunk: CSV, or leaves under a signed head."""
        async with self._database.raw_tenant(wanted.tenant_id) as tx:
            size, _ = await log.read_head(tx, wanted.tenant_id)
            head = None if as_csv else await self._proving.head_of(tx, wanted.tenant_id)
            last = min(wanted.last or size, size)
            wanted = wanted.between(wanted.after, last)
            total = await entries.count(tx, wanted)
        pending = _csv_line(_CSV_COLUMNS) if head is None else _header_line(head, wanted)
        exported, cursor = 0, wanted.after
        while cursor < last:
            found = await self._read(wanted.between(cursor, last))
            exported += len(found)
            pending += _csv_block(found) if as_csv else _leaves_block(found)
            cursor = last if len(found) < _BATCH_ENTRIES_MAX else found[-1].sequence
            if len(pending) >= _CHUNK_BYTES:
                yield Chunk(pending, cursor, exported, total)
                pending = b""
        yield Chunk(pending, last, exported, total)

    async def _size(self, tenant_id: str) -> int:
        async with self._database.raw_tenant(tenant_id) as tx:
            return (await log.read_head(tx, tenant_id))[0]

    async def _read(self, wanted: EntryFilter) -> list[Entry]:
        async with self._database.raw_tenant(wanted.tenant_id) as tx:
            return await entries.list_forward(tx, wanted, _BATCH_ENTRIES_MAX)


def _concerns(payloads: frozenset[str], tenant_id: str) -> bool:
    return any(payload == "*" or tenant_id in payload.split(",") for payload in payloads)


def _header_line(head: Head, wanted: EntryFilter) -> bytes:
    header = {
        "cogni_ledger_export": 1,
        "tenant": wanted.tenant_id,
        "after_sequence": wanted.after,
        "last_sequence": wanted.last,
        "is_filtered": wanted.is_filtered,
        "note": head.checkpoint.note,
        "verifier_key": head.checkpoint.verifier_key,
    }
    return json.dumps(header, ensure_ascii=False, sort_keys=True).encode() + b"\n"


def _leaves_block(found: list[Entry]) -> bytes:
    """Return leaves as they are, one a line, and a line of their hashes.

    The hashes, once they are seen to lead to the signed root, tell which leaf was altered even
    when all leaves after it were rewritten to fit.
    """
    if not found:
        return b""
    hashes = json.dumps({"leaf_hashes": [entry.leaf_hash.hex() for entry in found]})
    return b"".join(entry.leaf + b"\n" for entry in found) + hashes.encode() + b"\n"


def _csv_block(found: list[Entry]) -> bytes:
    return b"".join(_entry_csv(entry) for entry in found)


def _csv_line(cells: tuple[object, ...]) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\r\n").writerow(cells)
    return text.getvalue().encode()


def _entry_csv(entry: Entry) -> bytes:
    def money(minor: int | None) -> str:
        return "" if minor is None else format_minor(minor, entry.asset)

    def when(moment: datetime) -> str:
        return moment.isoformat()

    return _csv_line(
        (
            entry.sequence,
            when(entry.record_time),
            when(entry.occur_time),
            entry.kind.name,
            entry.debit_account_id,
            entry.credit_account_id,
            entry.asset.code,
            money(entry.amount),
            money(entry.debit_balance),
            money(entry.credit_balance),
            entry.source_system,
            _harmless(entry.source_reference),
            entry.run_id,
            entry.attempt,
            entry.hold_id,
            entry.corrects_sequence or "",
            _harmless(entry.description),
        )
    )


def _harmless(text: str) -> str:
    """Keep a spreadsheet from taking a caller's text for a formula."""
    return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
