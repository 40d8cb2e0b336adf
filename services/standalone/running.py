"""Runs something on a stack until it ends, the stack fails, or the person has enough."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Final

from services.standalone.stack import Stack

STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


async def run_on(stack: Stack, work: Callable[[Stack], Awaitable[None]]) -> None:
    """Starts the stack, does `work` while watching it, and always stops it.

    The first Ctrl-C (or SIGTERM, or a closed terminal) begins the orderly stop, the second
    kills what is still there. Raises StandaloneError when the stack cannot start or go on.
    """
    loop = asyncio.get_running_loop()
    body = asyncio.create_task(_body(stack, work))
    signals = 0

    def stop() -> None:
        nonlocal signals
        signals += 1
        if signals == 1:
            body.cancel()
        else:
            stack.kill()

    for number in STOP_SIGNALS:
        loop.add_signal_handler(number, stop)
    try:
        await body
    except asyncio.CancelledError:
        if signals == 0:
            raise
    finally:
        # Not in the body: Ctrl-C while a failed stack is being stopped would end the stopping.
        await stack.stop()
        for number in STOP_SIGNALS:
            loop.remove_signal_handler(number)


async def _body(stack: Stack, work: Callable[[Stack], Awaitable[None]]) -> None:
    await stack.start()
    tasks = [asyncio.ensure_future(stack.watch()), asyncio.ensure_future(work(stack))]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
