"""The place where every tool invocation of a run meets its guard."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol

from langchain_core.messages import ToolMessage
from langchain_core.runnables import RunnableConfig
from langchain_core.tools import BaseTool, ToolException

from cogni.graph import portal
from cogni.graph.invocation import Invocation, serving

_GUARDED = "__cogni_guarded__"


class ToolDenied(ToolException):
    """Raised in place of a tool that the run's grant does not allow.

    When the model asked for the tool, it sees the text as the tool's error and
    the run goes on; when the graph's code invoked it, the exception reaches it.
    """


class UnguardedToolError(RuntimeError):
    """Raised when a runner's process invokes a tool that belongs to no run."""


@dataclass(frozen=True)
class ToolRequest:
    """A tool about to be invoked. `arguments` are the model's, without injected ones."""

    tool: BaseTool
    arguments: Mapping[str, Any]
    tool_call_id: str | None
    config: RunnableConfig | None = field(repr=False)


@dataclass(frozen=True)
class Recorded:
    """The outcome of an invocation that was done before: it is not done again."""

    outcome: Any


@dataclass(frozen=True)
class Question:
    """What a person must answer before the invocation may go on."""

    asked: Mapping[str, Any]
    #: The guard knows the answer: the question only takes its place among the task's.
    answered: bool = False


class Guard(Protocol):
    """Decides about the tool invocations of one run. The runner supplies it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which every method must be called."""

    async def admit(self, request: ToolRequest) -> Invocation | Recorded | Question:
        """Decide and record the decision durably. Raises ToolDenied."""

    async def answered(
        self, request: ToolRequest, question: Question, answer: Any
    ) -> Invocation | Recorded | Question:
        """Go on with a person's answer. Raises ToolDenied."""

    async def finished(self, invocation: Invocation, outcome: Any) -> Any:
        """Record the outcome; return it with the credential's values removed."""

    async def failed(self, invocation: Invocation, failure: BaseException) -> BaseException:
        """Record the failure; return what to raise, with the credential's values removed."""


_guard: ContextVar[Guard | None] = ContextVar("cogni_guard", default=None)


@contextmanager
def guarded_by(guard: Guard) -> Iterator[None]:
    """Guard every tool invoked inside, by whatever task or thread it starts."""
    token = _guard.set(guard)
    try:
        yield
    finally:
        _guard.reset(token)


@contextmanager
def guard_every_tool() -> Iterator[None]:
    """Put the guard into LangChain's own `BaseTool.run` and `arun` while inside.

    Every path to a tool (ToolNode, `invoke`, `ainvoke`, an agent) goes through
    these two, so projects that never heard of Cogni are guarded unchanged. From
    then on a tool or model called outside any run is refused.
    """
    run, arun = BaseTool.run, BaseTool.arun
    BaseTool.run = _guarded_run(run)  # type: ignore[method-assign]
    BaseTool.arun = _guarded_arun(arun)  # type: ignore[method-assign,assignment]
    try:
        yield
    finally:
        BaseTool.run, BaseTool.arun = run, arun  # type: ignore[method-assign]


def refuse_outside_run(refusal: RuntimeError) -> None:
    """Raise `refusal` in a runner's process; a developer's machine goes on."""
    if getattr(BaseTool.arun, _GUARDED, False):
        raise refusal


def _guarded_arun(original: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(original)
    async def arun(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        guard, request = _guard.get(), _request(self, tool_input, kwargs)
        if guard is None:
            refuse_outside_run(UnguardedToolError(f"{self.name} was invoked outside any run"))
            return await original(self, tool_input, *args, **kwargs)
        try:
            admitted = await _on(guard, _admit(guard, request))
            while isinstance(admitted, Question):
                answer = _ask(admitted)
                admitted = await _on(guard, guard.answered(request, admitted, answer))
        except ToolDenied as denial:
            return _denied(request, denial)
        if isinstance(admitted, Recorded):
            return admitted.outcome
        try:
            with serving(admitted):
                outcome = await original(self, tool_input, *args, **kwargs)
        except BaseException as failure:
            raise (await _on(guard, guard.failed(admitted, failure))) from None
        return await _on(guard, guard.finished(admitted, outcome))

    setattr(arun, _GUARDED, True)
    return arun


def _guarded_run(original: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(original)
    def run(self: BaseTool, tool_input: Any, *args: Any, **kwargs: Any) -> Any:
        guard, request = _guard.get(), _request(self, tool_input, kwargs)
        if guard is None:
            refuse_outside_run(UnguardedToolError(f"{self.name} was invoked outside any run"))
            return original(self, tool_input, *args, **kwargs)
        try:
            admitted = portal.call(_admit(guard, request), guard.loop)
            while isinstance(admitted, Question):
                answer = _ask(admitted)
                admitted = portal.call(guard.answered(request, admitted, answer), guard.loop)
        except ToolDenied as denial:
            return _denied(request, denial)
        if isinstance(admitted, Recorded):
            return admitted.outcome
        try:
            with serving(admitted):
                outcome = original(self, tool_input, *args, **kwargs)
        except BaseException as failure:
            raise portal.call(guard.failed(admitted, failure), guard.loop) from None
        return portal.call(guard.finished(admitted, outcome), guard.loop)

    setattr(run, _GUARDED, True)
    return run


async def _admit(guard: Guard, request: ToolRequest) -> Invocation | Recorded | Question:
    return await guard.admit(request)


async def _on(guard: Guard, step: Any) -> Any:
    """Await a guard's step on the guard's own loop, from whichever loop the tool runs on."""
    if asyncio.get_running_loop() is guard.loop:
        return await step
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(step, guard.loop))


def _ask(question: Question) -> Any:
    """Return the answer at the next place among the task's; without one, end the task here."""
    # Imported here: authors of tools need no langgraph until a question is asked.
    from langgraph.errors import GraphInterrupt
    from langgraph.types import interrupt

    try:
        return interrupt(dict(question.asked))
    except GraphInterrupt:
        # Of two tools at work at once, the other may have taken this one's place.
        if question.answered:
            return None
        raise


def _request(tool: BaseTool, tool_input: Any, kwargs: Mapping[str, Any]) -> ToolRequest:
    if isinstance(tool_input, dict):
        arguments = tool._filter_injected_args(tool_input)
    else:
        arguments = {"input": tool_input}
    return ToolRequest(tool, arguments, kwargs.get("tool_call_id"), kwargs.get("config"))


def _denied(request: ToolRequest, denial: ToolDenied) -> ToolMessage:
    if request.tool_call_id is None:
        raise denial
    return ToolMessage(
        content=str(denial),
        name=request.tool.name,
        tool_call_id=request.tool_call_id,
        status="error",
    )
