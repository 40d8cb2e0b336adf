"""Gathers what many callers ask at once into one piece of work per tenant."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from services.runtime.arriving import let_arrive
from services.runtime.errors import limit

Item = TypeVar("Item")
Result = TypeVar("Result")

BATCH_MAX = 200
WAITING_MAX = 5000


@dataclass(slots=True)
class _Queue(Generic[Item, Result]):
    waiting: deque[tuple[Item, asyncio.Future[Result]]] = field(default_factory=deque)
    worker: asyncio.Task[None] | None = None


class Batches(Generic[Item, Result]):
    """Runs `work(tenant_id, items)` for whatever waits, one batch per tenant at a time.

    There is no timer: a batch grows while the one before it runs, and while more calls that have
    arrived come to wait. `work` answers in the order of its items, an exception in place of a
    result where one item failed; an exception it raises is everybody's.
    """

    def __init__(
        self,
        work: Callable[[str, Sequence[Item]], Awaitable[Sequence[Result | Exception]]],
    ) -> None:
        self._work = work
        self._queues: dict[str, _Queue[Item, Result]] = {}

    async def submit(self, tenant_id: str, item: Item) -> Result:
        """The item's result. Raises LIMIT_EXCEEDED when too many wait."""
        queue = self._queues.get(tenant_id)
        if queue is None:
            queue = self._queues[tenant_id] = _Queue()
        if len(queue.waiting) >= WAITING_MAX:
            raise limit(f"tenant:{tenant_id}", f"at most {WAITING_MAX} leases wait in a server")
        future: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        queue.waiting.append((item, future))
        if queue.worker is None:
            queue.worker = asyncio.create_task(self._drain(tenant_id, queue))
        return await future

    async def close(self) -> None:
        """Wait for the batches under way."""
        workers = [queue.worker for queue in self._queues.values() if queue.worker is not None]
        await asyncio.gather(*workers, return_exceptions=True)

    async def _drain(self, tenant_id: str, queue: _Queue[Item, Result]) -> None:
        try:
            while queue.waiting:
                await let_arrive(lambda: len(queue.waiting), BATCH_MAX)
                batch = self._take(queue)
                if batch:
                    await self._run(tenant_id, batch)
        finally:
            queue.worker = None
            # A tenant that went quiet leaves nothing behind.
            if not queue.waiting:
                self._queues.pop(tenant_id, None)

    def _take(self, queue: _Queue[Item, Result]) -> list[tuple[Item, asyncio.Future[Result]]]:
        taken: list[tuple[Item, asyncio.Future[Result]]] = []
        while queue.waiting and len(taken) < BATCH_MAX:
            item, future = queue.waiting.popleft()
            # A future that is done has a caller who gave up (deadline, disconnect).
            if not future.done():
                taken.append((item, future))
        return taken

    async def _run(self, tenant_id: str, batch: list[tuple[Item, asyncio.Future[Result]]]) -> None:
        try:
            results = await self._work(tenant_id, [item for item, _ in batch])
        except Exception as error:
            # Each waiter raises it: nothing is swallowed, and the next batch gets its chance.
            results = [error] * len(batch)
        for (_, future), result in zip(batch, results, strict=True):
            if future.done():
                continue
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)
