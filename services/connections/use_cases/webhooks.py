"""Tells the operator's endpoints what happened to connections, at least once each."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta

from services.connections.providers.failures import FailureKind, ProviderError
from services.connections.providers.http import Http, Request, retry_after
from services.connections.store import events
from services.connections.store.events import Undelivered
from services.connections.webhook import AGE_MAX, Endpoint, Event, endpoint_of, signed_headers
from services.runtime.database import Database
from services.runtime.errors import unavailable
from services.runtime.outbox import Entry
from services.runtime.relay import Relay, RelayLimits

_log = logging.getLogger(__name__)

SEND_TIMEOUT = timedelta(seconds=10)
_SENDS_AT_ONCE = 16
_GONE = 410
# From 5 seconds, doubling, to 4 hours: about 17 attempts in AGE_MAX. A batch is as large as what
# is sent at once, so that no entry's time runs out while it waits for others.
LIMITS = RelayLimits(
    batch_entries=_SENDS_AT_ONCE,
    single_sends_at_once=_SENDS_AT_ONCE,
    together=False,
    handler=SEND_TIMEOUT * 1.5,
    lease=SEND_TIMEOUT * 3,
    pause_first=timedelta(seconds=5),
    pause_max=timedelta(hours=4),
    pause_asked_max=AGE_MAX,
)
_TROUBLES = {
    FailureKind.UNAVAILABLE: "it cannot be reached or did not answer in time",
    FailureKind.EGRESS_DENIED: "its name leads to a private or local address",
}


def _now() -> datetime:
    return datetime.now(UTC)


class Webhooks:
    """Delivers events, or gives them up when they have become too old."""

    def __init__(
        self,
        database: Database,
        http: Http,
        endpoints: Mapping[str, Endpoint],
        *,
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._database = database
        self._http = http
        self._endpoints = endpoints
        self._clock = clock

    def relay(self, limits: RelayLimits = LIMITS) -> Relay:
        """What sends the events that changes left in the outbox."""
        return Relay(self._database, {events.TOPIC: self.deliver}, limits=limits)

    async def deliver(self, entries: list[Entry]) -> None:
        """Send each. Raises ServiceError UNAVAILABLE for one that is to be sent again."""
        for entry in entries:
            endpoint = endpoint_of(self._endpoints, entry.tenant_id)
            if endpoint is not None:
                await self._deliver(entry, endpoint)

    async def _deliver(self, entry: Entry, endpoint: Endpoint) -> None:
        event, now = Event.of(entry.payload), self._clock()
        request = Request("POST", endpoint.url, signed_headers(endpoint, event, now), event.body)
        wait, gone = timedelta(0), False
        try:
            answer = await self._http.send(request)
        except ProviderError as failure:
            trouble = _TROUBLES.get(failure.kind, "its answer cannot be read")
        else:
            if 200 <= answer.status < 300:
                return
            trouble = f"it answered HTTP {answer.status}"
            wait, gone = retry_after(answer, now=now) or wait, answer.status == _GONE
        if gone or now - entry.enqueue_time >= AGE_MAX:
            await self._give_up(entry, trouble)
            return
        raise unavailable(f"The webhook of {entry.tenant_id}: {trouble}.", retry_after=wait)

    async def _give_up(self, entry: Entry, trouble: str) -> None:
        async with self._database.jobs() as tx:
            await events.give_up(tx, entry, trouble)
        _log.error(
            "event %s of tenant %s was not delivered in %d attempts and is given up (%s); "
            "python -m services.connections undelivered lists it",
            *(entry.payload["event_id"], entry.tenant_id, entry.attempts, trouble),
        )


def describe(found: Undelivered) -> str:
    """One line about an event that was given up."""
    return (
        f"{found.give_up_time.isoformat(timespec='seconds')} {found.tenant_id} {found.event_id} "
        f"{found.payload['type']} {found.payload['data']['connection_id']}: "
        f"{found.attempts} attempts, {found.last_error}"
    )
