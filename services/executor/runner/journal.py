"""Gathers what all attempts of the process did, and commits it in as few transactions as it can."""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

from services.executor.events import Draft
from services.executor.store import journal as store
from services.executor.store.journal import Committed, Page, Write
from services.runtime.database import Database
from services.runtime.errors import ServiceError

_log = logging.getLogger(__name__)

#: What one transaction carries at most; what is left goes into the next.
_PAGES_PER_BATCH_MAX = 200
#: How many entries of one attempt wait at most before whoever writes them has to.
_ENTRIES_WAITING_MAX = 1000
#: Pause after a failed transaction, and how long one run is tried before its attempt is given up.
_PAUSE_SECONDS_MIN = 0.05
_PAUSE_SECONDS_MAX = 1.0
_GIVE_UP_SECONDS = 60.0


class LeaseLostError(Exception):
    """Raised when an attempt that lost its lease wants to act. It must stop at once."""


class JournalUnavailableError(Exception):
    """Raised when what an attempt did could not be stored for a whole minute."""


@dataclass(frozen=True)
class Holding:
    """Which attempt writes, and by which lease."""

    run_id: str
    tenant_id: str
    epoch: int
    attempt: int


@dataclass
class _Entry:
    drafts: Sequence[Draft]
    acts: Sequence[Write]
    facts: Sequence[Write]
    done: asyncio.Future[None]
    since: float


@dataclass
class _Shelf:
    """What one attempt has written and nobody has committed yet, in order."""

    holding: Holding
    entries: list[_Entry] = field(default_factory=list)


class Journal:
    """Group commit: at once when nothing is under way, else with the next transaction.

    Entries of one attempt are committed in the order they were written, whole, and never twice.
    """

    def __init__(self, database: Database) -> None:
        self._database = database
        self._shelves: dict[tuple[str, int], _Shelf] = {}
        self._newest: dict[tuple[str, int], asyncio.Future[None]] = {}
        self._written = asyncio.Event()

    def write(
        self,
        holding: Holding,
        *,
        drafts: Sequence[Draft] = (),
        acts: Sequence[Write] = (),
        facts: Sequence[Write] = (),
    ) -> asyncio.Future[None]:
        """Note events and acts, which need the lease, and facts, which do not.

        The future is done when they are durable. It raises LeaseLostError when the lease is lost
        (the facts are stored all the same). Nobody needs to await it.
        """
        loop = asyncio.get_running_loop()
        done: asyncio.Future[None] = loop.create_future()
        key = (holding.run_id, holding.epoch)
        self._newest[key] = done
        done.add_done_callback(lambda each: self._forget(key, each))
        shelf = self._shelves.setdefault(key, _Shelf(holding))
        shelf.entries.append(_Entry(drafts, acts, facts, done, loop.time()))
        self._written.set()
        return done

    def crowded(self, holding: Holding) -> bool:
        """Whether the attempt is so far ahead of the database that it should wait."""
        shelf = self._shelves.get((holding.run_id, holding.epoch))
        return shelf is not None and len(shelf.entries) >= _ENTRIES_WAITING_MAX

    async def flush(self, holding: Holding) -> None:
        """Wait until everything the attempt has written is durable; raises as `write` does."""
        # Entries of one attempt are done in order, also those of a commit under way.
        newest = self._newest.get((holding.run_id, holding.epoch))
        if newest is not None:
            await asyncio.shield(newest)

    async def run(self) -> None:
        """Commit until cancelled, and then to the end of the commit under way."""
        while True:
            await self._written.wait()
            self._written.clear()
            while self._shelves:
                committing = asyncio.create_task(self._commit_some())
                try:
                    await asyncio.shield(committing)
                except asyncio.CancelledError:
                    # What it has taken off the shelves would be lost, facts about money too.
                    await committing
                    raise

    async def drain(self) -> None:
        """Commit what is left, for a process that is about to end."""
        while self._shelves:
            await self._commit_some()

    def _forget(self, key: tuple[str, int], done: asyncio.Future[None]) -> None:
        if self._newest.get(key) is done:
            del self._newest[key]
        # Events are often written without waiting; a lost lease is then noticed elsewhere.
        if not done.cancelled():
            done.exception()

    async def _commit_some(self) -> None:
        taken = self._take()
        try:
            committed = await self._commit(taken)
        except (ServiceError, OSError) as error:
            _log.warning("the journal waits for the database (%s)", error)
            await self._give_back(taken, error)
        except Exception as error:
            await self._alone(taken, error)
        else:
            await self._settle(taken, committed)

    async def _commit(self, taken: Sequence[_Shelf]) -> Committed:
        pages = [_page(shelf) for shelf in taken]
        committed: Committed | None = None
        try:
            async with self._database.raw_jobs() as tx:
                committed = await store.commit(tx, pages)
        except (ServiceError, OSError):
            # The connection may have broken after the commit: then the events are there.
            if committed is None or not await self._is_there(committed):
                raise
        return committed

    async def _is_there(self, committed: Committed) -> bool:
        """Whether a commit whose answer was lost has happened.

        Asked until the database tells: what broke the connection, a restart, keeps it silent for
        a while, and committing on a guess would write the events twice. Raises when it does not
        tell for so long that the entries are given up.
        """
        if not committed.witnesses:
            return False
        run_id, (seq, payload) = next(iter(committed.witnesses.items()))
        clock = asyncio.get_running_loop().time
        given_up = clock() + _GIVE_UP_SECONDS
        while True:
            try:
                async with self._database.raw_jobs() as tx:
                    return await store.is_written(tx, run_id, seq, payload)
            except (ServiceError, OSError):
                if clock() > given_up:
                    raise
                await asyncio.sleep(_PAUSE_SECONDS_MAX / 2)

    async def _alone(self, taken: Sequence[_Shelf], error: Exception) -> None:
        """Commit each attempt by itself, so that what one cannot store harms no other."""
        if len(taken) == 1:
            _log.error("what an attempt wrote cannot be stored", exc_info=error)
            _fail(taken[0], error)
            return
        for shelf in taken:
            try:
                committed = await self._commit([shelf])
            except (ServiceError, OSError) as unavailable:
                await self._give_back([shelf], unavailable)
            except Exception as own:
                await self._alone([shelf], own)
            else:
                await self._settle([shelf], committed)

    async def _settle(self, taken: Sequence[_Shelf], committed: Committed) -> None:
        waiting = []
        for shelf in taken:
            if shelf.holding.run_id in committed.busy:
                waiting.append(shelf)
            elif shelf.holding.run_id in committed.lost:
                _fail(shelf, LeaseLostError(shelf.holding.run_id), only_fenced=True)
            else:
                _finish(shelf)
        if waiting:
            await self._give_back(waiting, ServiceError)

    async def _give_back(self, taken: Sequence[_Shelf], why: object) -> None:
        now = asyncio.get_running_loop().time()
        for shelf in taken:
            if now - shelf.entries[0].since > _GIVE_UP_SECONDS:
                _fail(shelf, JournalUnavailableError(str(why)))
                continue
            key = (shelf.holding.run_id, shelf.holding.epoch)
            later = self._shelves.get(key)
            if later is not None:
                shelf.entries.extend(later.entries)
            self._shelves[key] = shelf
        pause = _PAUSE_SECONDS_MIN if why is ServiceError else _PAUSE_SECONDS_MAX / 2
        await asyncio.sleep(pause)

    def _take(self) -> list[_Shelf]:
        keys: list[tuple[str, int]] = []
        runs: set[str] = set()
        for key in self._shelves:
            # Two attempts of one run never share a transaction: their fences would be one row.
            if key[0] not in runs and len(keys) < _PAGES_PER_BATCH_MAX:
                keys.append(key)
                runs.add(key[0])
        return [self._shelves.pop(key) for key in keys]


def _page(shelf: _Shelf) -> Page:
    holding = shelf.holding
    page = Page(holding.run_id, holding.tenant_id, holding.epoch, holding.attempt)
    for entry in shelf.entries:
        page.drafts.extend(entry.drafts)
        page.acts.extend(entry.acts)
        page.facts.extend(entry.facts)
    return page


def _finish(shelf: _Shelf) -> None:
    for entry in shelf.entries:
        if not entry.done.done():
            entry.done.set_result(None)


def _fail(shelf: _Shelf, error: Exception, *, only_fenced: bool = False) -> None:
    for entry in shelf.entries:
        if entry.done.done():
            continue
        if only_fenced and not entry.drafts and not entry.acts:
            entry.done.set_result(None)
        else:
            entry.done.set_exception(error)
