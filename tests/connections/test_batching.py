"""What many callers ask at once becomes few pieces of work, and nobody waits for a timer."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from services.connections.batching import BATCH_MAX, Batches


class Work:
    """Doubles numbers, and remembers how many came at once."""

    def __init__(self) -> None:
        self.sizes: list[int] = []
        self.begun = asyncio.Event()

    async def __call__(self, tenant_id: str, items: Sequence[int]) -> list[int | Exception]:
        self.sizes.append(len(items))
        self.begun.set()
        return [item * 2 for item in items]


async def test_calls_that_arrive_within_a_few_rounds_of_the_loop_are_one_batch() -> None:
    work = Work()
    batches = Batches(work)

    async def ask(item: int) -> int:
        # As a call that passes through authentication and the opening of its credential.
        for _ in range(item):
            await asyncio.sleep(0)
        return await batches.submit("t1", item)

    answers = await asyncio.gather(*(ask(item) for item in range(10)))

    assert answers == [item * 2 for item in range(10)]
    assert work.sizes == [10]


async def test_a_full_batch_begins_although_more_keep_coming() -> None:
    work = Work()
    batches = Batches(work)
    coming = True

    async def come() -> None:
        while coming:
            asking.append(asyncio.create_task(batches.submit("t1", 1)))
            await asyncio.sleep(0)

    asking: list[asyncio.Task[int]] = []
    source = asyncio.create_task(come())
    async with asyncio.timeout(5):
        await work.begun.wait()
    coming = False
    await source
    await asyncio.gather(*asking)

    assert work.sizes[0] == BATCH_MAX
    assert sum(work.sizes) == len(asking)
