"""Calls what blocks in a thread: peers as part of the caller's trace, graph code in a pool."""

import asyncio
import contextvars
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, ParamSpec, TypeVar

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


#: Threads for what never waits for graph code: name lookups, LiteLLM, large checkpoints.
_OWN_THREADS = 32
#: Where LangChain and LangGraph wrap every blocking node, tool and model.
_GRAPH_CODE = "langchain_core.runnables.config"


class LoopThreads(ThreadPoolExecutor):
    """A loop's default threads, in which graph code cannot take those that it waits for.

    A blocking node that calls a model waits in its thread for LiteLLM, which needs a thread
    itself: in one pool, as many such nodes as it has threads would wait for ever, and with them
    every run of the process.
    """

    def __init__(self, graph_threads: int) -> None:
        super().__init__(_OWN_THREADS, thread_name_prefix="runner")
        self._graph = ThreadPoolExecutor(graph_threads, thread_name_prefix="graph")

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` in a thread of its kind."""
        if _is_graph_code(fn):
            return self._graph.submit(fn, *args, **kwargs)
        return super().submit(fn, *args, **kwargs)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Let both kinds of threads end."""
        self._graph.shutdown(wait, cancel_futures=cancel_futures)
        super().shutdown(wait, cancel_futures=cancel_futures)


def _is_graph_code(fn: Callable[..., Any]) -> bool:
    # LangChain hands over `partial(context.run, wrapper)`, the wrapper being its own.
    wrapped = fn.args[0] if isinstance(fn, partial) and fn.args else None
    return getattr(wrapped, "__module__", None) == _GRAPH_CODE
