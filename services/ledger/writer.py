"""Group commit: one loop per process that posts whatever has queued up, as soon as it is idle."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

from services.ledger.commands import Command, Outcome
from services.runtime.arriving import let_arrive
from services.runtime.errors import ServiceError, limit, unavailable

_log = logging.getLogger(__name__)

#: One transaction holds at most this many commands, so that a bulk of thousands delays a single
#: unit that comes after it by tens of milliseconds and not by seconds.
BATCH_COMMANDS_MAX = 500
#: So many waiting are a batch worth making while another is being written, and so many may be.
LARGE_COMMANDS = 200
BATCHES_UNDER_WAY_MAX = 2
#: More than this waiting, and callers are told to come back: about a second of work.
QUEUE_COMMANDS_MAX = 20_000
_RETRY_AFTER = timedelta(milliseconds=500)

Post = Callable[[Sequence[Command]], Awaitable[list[Outcome]]]


@dataclass(slots=True)
class _Submission:
    commands: Sequence[Command]
    answer: asyncio.Future[list[Outcome]]


class Writer:
    """The queue in front of the books. Answers are given after the commit, never before."""

    def __init__(self, post: Post) -> None:
        self._post = post
        self._waiting: deque[_Submission] = deque()
        self._waiting_commands = 0
        self._wake = asyncio.Event()
        self._under_way: set[asyncio.Task[None]] = set()

    async def submit(self, commands: Sequence[Command]) -> list[Outcome]:
        """Queue commands and return what each came to, once that is committed.

        A caller that gives up leaves its commands in the queue: they may still be applied, and
        the same request sent again finds out. Raises LIMIT_EXCEEDED when the queue is full.
        """
        if not commands:
            return []
        if self._waiting_commands + len(commands) > QUEUE_COMMANDS_MAX:
            raise limit(
                "ledger.writer",
                f"the writer has {QUEUE_COMMANDS_MAX} commands waiting; retry the same request.",
                retry_after=_RETRY_AFTER,
            )
        if len(commands) <= BATCH_COMMANDS_MAX:
            return await self._enqueue(commands)
        chunks = [
            commands[start : start + BATCH_COMMANDS_MAX]
            for start in range(0, len(commands), BATCH_COMMANDS_MAX)
        ]
        answers = [self._enqueue(chunk) for chunk in chunks]
        return [outcome for answer in await asyncio.gather(*answers) for outcome in answer]

    def _enqueue(self, commands: Sequence[Command]) -> asyncio.Future[list[Outcome]]:
        submission = _Submission(commands, asyncio.get_running_loop().create_future())
        self._waiting.append(submission)
        self._waiting_commands += len(commands)
        if self._may_go_on():
            self._wake.set()
        return submission.answer

    @property
    def waiting_commands(self) -> int:
        """How many commands wait for the loop."""
        return self._waiting_commands

    async def run(self) -> None:
        """Post batches until cancelled. What is still waiting then is refused as UNAVAILABLE."""
        try:
            while True:
                await self._wake.wait()
                self._wake.clear()
                while self._may_go_on():
                    await let_arrive(lambda: self._waiting_commands, LARGE_COMMANDS)
                    self._start_next()
                    # It makes its batch in its first step, and so before the batch after it.
                    await asyncio.sleep(0)
        finally:
            for task in self._under_way:
                task.cancel()
            await asyncio.gather(*self._under_way, return_exceptions=True)
            self._abandon()

    def _may_go_on(self) -> bool:
        """Whether to take the next batch: when none is under way, or beside one if it is large.

        A large batch costs as much to make here as to write there, so the next is made meanwhile.
        A small one waits: it grows, and commits are shared.
        """
        if not self._under_way:
            return bool(self._waiting)
        is_large = self._waiting_commands >= LARGE_COMMANDS
        return is_large and len(self._under_way) < BATCHES_UNDER_WAY_MAX

    def _start_next(self) -> None:
        task = asyncio.create_task(self._flush(self._take()))
        self._under_way.add(task)
        task.add_done_callback(self._end)

    def _end(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if self._may_go_on():
            self._wake.set()

    def _take(self) -> list[_Submission]:
        taken = [self._waiting.popleft()]
        size = len(taken[0].commands)
        while self._waiting and size + len(self._waiting[0].commands) <= BATCH_COMMANDS_MAX:
            taken.append(self._waiting.popleft())
            size += len(taken[-1].commands)
        self._waiting_commands -= size
        return taken

    async def _flush(self, taken: list[_Submission]) -> None:
        try:
            outcomes = await self._post([c for each in taken for c in each.commands])
        except asyncio.CancelledError:
            _fail(taken, unavailable("The server is stopping; send the same request again."))
            raise
        except ServiceError as error:
            _fail(taken, error)
        except Exception as error:
            if len(taken) == 1:
                _fail(taken, error)
                return
            # One caller's commands must not fail its neighbours': post each caller's alone.
            _log.exception("a batch of %d callers failed; posting them one by one", len(taken))
            for each in taken:
                await self._flush([each])
        else:
            start = 0
            for each in taken:
                end = start + len(each.commands)
                if not each.answer.done():
                    each.answer.set_result(outcomes[start:end])
                start = end

    def _abandon(self) -> None:
        _fail(self._waiting, unavailable("The server is stopping; send the same request again."))
        self._waiting.clear()
        self._waiting_commands = 0


def _fail(submissions: Sequence[_Submission] | deque[_Submission], error: Exception) -> None:
    for each in submissions:
        if not each.answer.done():
            each.answer.set_exception(error)
