"""Calls what blocks in a thread, as part of the caller's trace."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor
from typing import ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Answer = TypeVar("Answer")


async def in_thread(
    threads: Executor,
    call: Callable[Arguments, Answer],
    *args: Arguments.args,
    **kwargs: Arguments.kwargs,
) -> Answer:
    """Run `call` in one of the threads, with the context of the task that waits for it.

    `run_in_executor` alone starts from an empty context: calls to peers would begin a new trace.
    """
    context = contextvars.copy_context()
    loop = asyncio.get_running_loop()
    return await loop.run_in_executor(threads, lambda: context.run(call, *args, **kwargs))
