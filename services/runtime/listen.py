"""Wakes loops when PostgreSQL notifies, and by polling when it does not.

A notification is a hint: it may be lost with the connection, so every loop that uses it also
looks by itself, once per poll.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import asyncpg
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncConnection

from services.runtime.pools import plain_dsn

_PAYLOADS_MAX = 10_000
_CONNECT_SECONDS_MAX = 5.0
_PING_SECONDS = 15.0
_ANSWER_SECONDS_MAX = 5.0
_BACKOFF_SECONDS_MIN = 0.1
_BACKOFF_SECONDS_MAX = 5.0

# The last is what asyncpg says when PostgreSQL was killed in the middle of its answer.
_LOST = (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError)

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Wakeup:
    """Why a loop was woken: the distinct payloads notified since it last was.

    `anything` is true when notifications may have been missed, or it was a poll: then whatever
    the loop watches may have changed.
    """

    payloads: frozenset[str] = frozenset()
    anything: bool = False


@dataclass
class _Inbox:
    """What has been notified and not yet taken by one loop."""

    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    payloads: set[str] = field(default_factory=set)
    anything: bool = False

    def put(self, payload: str) -> None:
        if len(self.payloads) < _PAYLOADS_MAX:
            self.payloads.add(payload)
        elif payload not in self.payloads:
            self.anything = True
        self.arrived.set()

    def put_anything(self) -> None:
        self.anything = True
        self.arrived.set()

    def take(self, *, polled: bool) -> Wakeup:
        wakeup = Wakeup(frozenset(self.payloads), self.anything or polled)
        self.payloads.clear()
        self.anything = False
        self.arrived.clear()
        return wakeup


class Listener:
    """One connection that listens for all loops of a process.

    `run` keeps it; without, or while it cannot connect, the loops are woken by their polls.
    """

    def __init__(self, url: str, *, application_name: str = "cogni") -> None:
        self._dsn = plain_dsn(url)
        self._application_name = f"{application_name} listener"
        self._inboxes: dict[str, list[_Inbox]] = {}
        self._changed = asyncio.Event()
        self.listening = asyncio.Event()

    async def wakeups(self, channel: str, *, poll_seconds: float = 1.0) -> AsyncGenerator[Wakeup]:
        """Yield at once, then whenever the channel is notified, and every `poll_seconds`.

        Notifications that come while the loop works are one wakeup together.
        """
        with self._subscribed(channel) as inbox:
            yield Wakeup(anything=True)
            while True:
                polled = False
                try:
                    async with asyncio.timeout(poll_seconds):
                        await inbox.arrived.wait()
                except TimeoutError:
                    polled = True
                yield inbox.take(polled=polled)

    async def run(self) -> None:
        """Listen until cancelled, connecting again with growing pauses after each failure."""
        pause_seconds = _BACKOFF_SECONDS_MIN
        while True:
            try:
                await self._listen()
            except _LOST as error:
                _log.warning("the listener lost PostgreSQL (%s)", type(error).__name__)
            if self.listening.is_set():
                self.listening.clear()
                pause_seconds = _BACKOFF_SECONDS_MIN
            await asyncio.sleep(pause_seconds)
            pause_seconds = min(pause_seconds * 2, _BACKOFF_SECONDS_MAX)

    @contextmanager
    def _subscribed(self, channel: str) -> Iterator[_Inbox]:
        inbox = _Inbox()
        self._inboxes.setdefault(channel, []).append(inbox)
        self._changed.set()
        try:
            yield inbox
        finally:
            self._inboxes[channel].remove(inbox)

    async def _listen(self) -> None:
        connection = await asyncpg.connect(
            self._dsn,
            timeout=_CONNECT_SECONDS_MAX,
            command_timeout=_ANSWER_SECONDS_MAX,
            server_settings={"application_name": self._application_name},
        )
        try:
            connection.add_termination_listener(lambda _: self._changed.set())
            heard: set[str] = set()
            while not connection.is_closed():
                self._changed.clear()
                await self._hear_new_channels(connection, heard)
                self.listening.set()
                await self._until_changed(connection)
        finally:
            connection.terminate()

    async def _hear_new_channels(self, connection: asyncpg.Connection, heard: set[str]) -> None:
        for channel in self._inboxes.keys() - heard:
            await connection.add_listener(channel, self._deliver)
            heard.add(channel)
            # What was notified before the LISTEN took effect is lost.
            for inbox in self._inboxes[channel]:
                inbox.put_anything()

    async def _until_changed(self, connection: asyncpg.Connection) -> None:
        try:
            async with asyncio.timeout(_PING_SECONDS):
                await self._changed.wait()
        except TimeoutError:
            # A server that vanished without a word is found out by asking it something.
            await connection.execute("SELECT 1")

    def _deliver(self, _: object, __: int, channel: str, payload: object) -> None:
        for inbox in self._inboxes.get(channel, ()):
            inbox.put(str(payload))


async def notify(tx: AsyncConnection, channel: str, payload: str = "") -> None:
    """Wake the channel's loops when the transaction commits.

    Call it once per batch: committing a notification takes a lock of the whole cluster.
    """
    await tx.execute(
        text("SELECT pg_notify(:channel, :payload)"), {"channel": channel, "payload": payload}
    )
