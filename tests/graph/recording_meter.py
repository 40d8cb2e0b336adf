"""A meter that remembers what it was told, for tests of models without a runner."""

from __future__ import annotations

import asyncio
from typing import Any

from cogni.graph.metering import CallStart, Usage


class RecordingMeter:
    """Remembers calls in memory; `settled` is set at each settlement."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.opened: dict[str, CallStart] = {}
        self.usages: dict[str, Usage] = {}
        self.pumps: list[asyncio.Task[Any]] = []
        self.settled = asyncio.Event()

    async def open(self, start: CallStart) -> str:
        call_id = f"call-{len(self.opened)}"
        self.opened[call_id] = start
        return call_id

    async def settle(self, call_id: str, usage: Usage) -> None:
        self.usages[call_id] = usage
        self.settled.set()

    def adopt(self, pump: asyncio.Task[Any]) -> None:
        self.pumps.append(pump)
