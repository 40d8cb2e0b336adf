"""Runs an async tool from blocking code, on a loop and a thread of its own."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def blocking(work: Callable[_P, Coroutine[Any, Any, _T]]) -> Callable[_P, _T]:
    """The same function for callers that cannot await. It sees the caller's invocation."""

    @functools.wraps(work)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        # A thread, because the caller's own may carry a loop that is running.
        with ThreadPoolExecutor(1) as pool:
            context = copy_context()
            return pool.submit(context.run, asyncio.run, work(*args, **kwargs)).result()

    return run
