"""Calls a coroutine from code that is not async, in a run or on a developer's machine."""

from __future__ import annotations

import asyncio
import functools
import threading
from collections.abc import AsyncIterator, Coroutine, Iterator
from typing import Any, TypeVar

T = TypeVar("T")


class BlockingCallError(RuntimeError):
    """Raised when async graph code makes a blocking call that would wait for itself.

    Await the async form instead: `await model.ainvoke(...)`, `await tool.ainvoke(...)`.
    """


def call(coroutine: Coroutine[Any, Any, T], loop: asyncio.AbstractEventLoop | None) -> T:
    """Run the coroutine on `loop` (None: on a loop of our own) and wait for its result."""
    target = loop or _own_loop()
    if _running_loop() is target:
        coroutine.close()
        raise BlockingCallError(
            "a blocking model or tool call was made inside async graph code: "
            "use the awaitable form (ainvoke, astream), or make the node a plain function"
        )
    return asyncio.run_coroutine_threadsafe(coroutine, target).result()


def iterate(items: AsyncIterator[T], loop: asyncio.AbstractEventLoop | None) -> Iterator[T]:
    """Iterate from blocking code over an async iterator that lives on `loop`."""

    async def step() -> tuple[T | None, bool]:
        try:
            return await anext(items), True
        except StopAsyncIteration:
            return None, False

    async def close() -> None:
        if (aclose := getattr(items, "aclose", None)) is not None:
            await aclose()

    try:
        while True:
            item, more = call(step(), loop)
            if not more:
                return
            yield item  # type: ignore[misc]  # None only together with `more` False.
    finally:
        call(close(), loop)


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


@functools.cache
def _own_loop() -> asyncio.AbstractEventLoop:
    """A loop in a daemon thread: HTTP clients are bound to the loop they were made on."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, name="cogni-portal", daemon=True).start()
    return loop
