"""What a model call owes its run: the meter it must be announced to and settled with."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Protocol


@dataclass(frozen=True)
class Usage:
    """Tokens one provider call used, and what they cost in US dollars.

    `cost_usd` is None when nobody knows the model's price. `estimated` marks a
    call whose outcome is unknown and that was settled from its upper bound.
    `provider_response_id` is the provider's own name for its answer, to find the
    call on the provider's bill; it is no key, since providers repeat them.
    """

    input_tokens: int
    output_tokens: int
    cached_input_tokens: int = 0
    cache_write_tokens: int = 0
    reasoning_tokens: int = 0
    cost_usd: Decimal | None = None
    estimated: bool = False
    provider_response_id: str = ""


#: What a call that was never sent, or was refused by the provider, used.
NOTHING = Usage(input_tokens=0, output_tokens=0, cost_usd=Decimal(0))


@dataclass(frozen=True)
class CallStart:
    """A provider call about to be sent, with the most it can use."""

    model: str
    provider: str
    upper_bound: Usage


class Meter(Protocol):
    """Counts the provider calls of one run. The runner supplies it."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The loop on which every method must be called."""

    async def open(self, start: CallStart) -> str:
        """Store the call durably as pending and return its id. Only then may it be sent.

        Raises when the run may not make the call (stopped, or its budget is spent).
        """

    async def settle(self, call_id: str, usage: Usage) -> None:
        """Store what the call used. Settling a second time changes nothing."""

    def adopt(self, pump: asyncio.Task[Any]) -> None:
        """Keep a task that may outlive the run until the call behind it is settled."""


class UnmeteredCallError(RuntimeError):
    """Raised when a runner's process makes a model call that belongs to no run.

    It happens when graph code starts a thread of its own: start it with
    `contextvars.copy_context().run`, or use LangGraph's parallel nodes.
    """


_meter: ContextVar[Meter | None] = ContextVar("cogni_meter", default=None)


def current_meter() -> Meter | None:
    """The meter of the run this code works for; None on a developer's machine."""
    return _meter.get()


@contextmanager
def metered_by(meter: Meter) -> Iterator[None]:
    """Meter every model call made inside, by whatever task or thread it starts."""
    token = _meter.set(meter)
    try:
        yield
    finally:
        _meter.reset(token)
