"""Streams one run's events: the log after a sequence number, then what happens."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

from services.executor.events import TERMINAL
from services.executor.runs import Run
from services.executor.store import runs
from services.executor.use_cases.tail import Follower, Tail
from services.runtime.database import Database
from services.runtime.drain import Drain, stream_drained
from services.runtime.errors import ErrorKind, ServiceError, failed_precondition, not_found

# Streams in batches carry eight to thirty times as many events a second as single ones.
_BATCH_EVENTS = 256
HEARTBEAT_SECONDS = 10.0
# A log that still ends too early after so many reads was deleted meanwhile.
_VAIN_READS_MAX = 3


@dataclass(frozen=True, slots=True)
class EventBatch:
    """Stored events in order; without any, a heartbeat. `resume` marks a drained stream's last."""

    payloads: list[bytes]
    last_seq: int
    newest_seq: int
    resume: bool = False


async def watch_run(
    database: Database, tail: Tail, drain: Drain, tenant_id: str, run_id: str, after_seq: int
) -> AsyncIterator[EventBatch]:
    """Yield batches until the final event. Raises ServiceError.

    Served from the log alone: reading slowly or breaking off costs the run nothing.
    """
    with tail.follow(run_id) as follower:
        run = await _watchable(database, tenant_id, run_id, after_seq)
        follower.reach(run.last_seq)
        last_seq, vain_reads = after_seq, 0
        while not (run.final and last_seq == run.last_seq):
            follower.grown.clear()
            found = await tail.read(tenant_id, run_id, last_seq, _BATCH_EVENTS)
            if found:
                last_seq, vain_reads = found[-1].seq, 0
                follower.reach(last_seq)
                payloads = [event.payload for event in found]
                yield EventBatch(payloads, last_seq, follower.newest_seq)
                if found[-1].type == TERMINAL:
                    return
            if drain.draining.is_set():
                yield EventBatch([], last_seq, follower.newest_seq, resume=True)
                raise stream_drained()
            if found:
                continue
            if follower.newest_seq > last_seq:
                # A shared read may have begun before the commit that this stream was told of.
                vain_reads += 1
                if vain_reads > _VAIN_READS_MAX:
                    raise _expired()
            elif not await _grown(follower, drain):
                yield EventBatch([], last_seq, follower.newest_seq)


async def _watchable(database: Database, tenant_id: str, run_id: str, after_seq: int) -> Run:
    async with database.raw_tenant(tenant_id) as tx:
        run = await runs.get(tx, run_id)
    if run is None:
        raise not_found("run", run_id)
    if run.events_expire_time is not None:
        raise _expired()
    if after_seq > run.last_seq:
        raise ServiceError(
            ErrorKind.OUT_OF_RANGE,
            "SEQ_OUT_OF_RANGE",
            f"after_seq {after_seq} lies beyond the newest event, {run.last_seq}; watch from there "
            "or from 0.",
            metadata={"newest_seq": str(run.last_seq)},
        )
    return run


def _expired() -> ServiceError:
    return failed_precondition(
        "EVENTS_EXPIRED", "The run's events are no longer kept; GetRun tells its result."
    )


async def _grown(follower: Follower, drain: Drain) -> bool:
    """Wait for more, for the drain, or for the time to show a sign of life (False)."""
    waits = [
        asyncio.ensure_future(follower.grown.wait()),
        asyncio.ensure_future(drain.draining.wait()),
    ]
    try:
        done, _ = await asyncio.wait(
            waits, timeout=HEARTBEAT_SECONDS, return_when=asyncio.FIRST_COMPLETED
        )
    finally:
        for each in waits:
            each.cancel()
    return bool(done)
