"""Brings every settled usage unit to the Ledger, and closes the runs whose units are all there."""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Protocol

from opentelemetry import trace

from services.executor.adapters.ledger import Answer, Recording
from services.executor.amounts import Amount
from services.executor.store import billing, usage
from services.executor.usage import Closing, RecordProblem, SettledUnit
from services.runtime.database import Database
from services.runtime.errors import ErrorKind, PeerError
from services.runtime.telemetry import continued, extract

_log = logging.getLogger(__name__)
_tracer = trace.get_tracer("cogni.executor")

_ROUND_SECONDS = 1.0
_BATCH_UNITS = 500
_BATCH_RUNS = 50
_BATCH_STALE = 100
# Longer than a delivery takes with all its retries.
_LEASE = timedelta(seconds=60)
_UNANSWERED_PAUSE = timedelta(seconds=5)
_REJECTED_PAUSE = timedelta(minutes=5)
# The Ledger as a whole does not answer: the next run would meet the same.
_SILENT = (ErrorKind.UNAVAILABLE, ErrorKind.DEADLINE_EXCEEDED)
#: A call of an attempt that is gone counts as lost when its provider has had this long.
STALE_SECONDS = 120.0


class Ledger(Protocol):
    """What is asked of the Ledger."""

    async def record(self, tenant_id: str, units: Sequence[SettledUnit]) -> list[Answer]:
        """Record units of one tenant; answers in their order."""

    async def close_run(self, closing: Closing) -> None:
        """Commit which units a run has."""


class UsageDelivery:
    """One per process; any number may work side by side, since the Ledger charges a unit once."""

    def __init__(self, database: Database, ledger: Ledger) -> None:
        self._database = database
        self._ledger = ledger
        #: Units the Ledger holds with other content; for the metric that alarms.
        self.conflicts = 0

    async def run(self) -> None:
        """Deliver until cancelled, once a round and at once while there is a backlog."""
        while True:
            delivered = await self.deliver()
            await self.close()
            await self.settle_lost()
            if delivered < _BATCH_UNITS:
                await asyncio.sleep(_ROUND_SECONDS)

    async def deliver(self) -> int:
        """Bring one batch of units to the Ledger; returns how many were tried."""
        async with self._database.raw_jobs() as tx:
            units = await billing.take_due(tx, _BATCH_UNITS, _LEASE)
        by_tenant: dict[str, list[SettledUnit]] = defaultdict(list)
        for unit in units:
            by_tenant[unit.tenant_id].append(unit)
        for tenant_id, theirs in by_tenant.items():
            await self._deliver(tenant_id, theirs)
        return len(units)

    async def close(self) -> None:
        """Close final runs all of whose units are recorded."""
        async with self._database.raw_jobs() as tx:
            closings = await billing.to_close(tx, _BATCH_RUNS)
        for closing in closings:
            try:
                await self._ledger.close_run(closing)
            except PeerError as error:
                if error.kind is not ErrorKind.UNIMPLEMENTED:
                    _log.warning("run %s was not closed: %s", closing.run_id, error)
                    if error.kind in _SILENT:
                        return
                    # What is wrong with one run must not keep all the others open.
                    continue
            async with self._database.raw_jobs() as tx:
                await billing.note_closed(tx, closing)

    async def settle_lost(self) -> None:
        """Settle from their estimates the calls whose attempt is gone."""
        async with self._database.raw_jobs() as tx:
            lost = await usage.settle_stale(tx, STALE_SECONDS, _BATCH_STALE)
        if lost:
            _log.warning("settled %d lost calls from their estimates", lost)

    async def _deliver(self, tenant_id: str, units: list[SettledUnit]) -> None:
        try:
            with _traced(units):
                answers = await self._ledger.record(tenant_id, units)
        except PeerError as error:
            _log.warning("the Ledger did not record usage of %s: %s", tenant_id, error)
            async with self._database.raw_jobs() as tx:
                await billing.postpone(tx, [unit.call_id for unit in units], _UNANSWERED_PAUSE)
            return
        charges: dict[str, Amount | None] = {}
        sorted_ids: dict[Recording, list[str]] = defaultdict(list)
        for unit, answer in zip(units, answers, strict=True):
            if answer.recording is Recording.RECORDED:
                charges[unit.call_id] = answer.charge
            else:
                sorted_ids[answer.recording].append(unit.call_id)
        async with self._database.raw_jobs() as tx:
            await billing.note_recorded(tx, charges)
            for problem in RecordProblem:
                troubled = sorted_ids[Recording(problem)]
                await billing.note_problem(tx, troubled, problem, _REJECTED_PAUSE)
        self._alarm(sorted_ids)

    def _alarm(self, sorted_ids: dict[Recording, list[str]]) -> None:
        conflicting, rejected = sorted_ids[Recording.CONFLICT], sorted_ids[Recording.REJECTED]
        if conflicting:
            self.conflicts += len(conflicting)
            _log.error("the Ledger holds other charges under these call ids: %s", conflicting)
        if rejected:
            _log.error("the Ledger rejects these usage units: %s", rejected)


def _traced(units: Sequence[SettledUnit]) -> AbstractContextManager[trace.Span]:
    """A span in the trace of the units' run; of several runs it is a trace with links to each."""
    carriers = {unit.traceparent for unit in units if unit.traceparent}
    attributes = {"cogni.units": len(units)}
    if len(carriers) == 1:
        carrier = {"traceparent": carriers.pop()}
        kind = trace.SpanKind.INTERNAL
        return continued(_tracer, "deliver usage", carrier, kind=kind, attributes=attributes)
    spans = [
        trace.get_current_span(extract({"traceparent": carrier})).get_span_context()
        for carrier in sorted(carriers)
    ]
    return _tracer.start_as_current_span(
        "deliver usage",
        attributes=attributes,
        links=[trace.Link(span) for span in spans],
        record_exception=False,
        set_status_on_exception=False,
    )
