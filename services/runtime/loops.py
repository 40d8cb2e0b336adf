"""Background loops of a server: started with it, restarted when they fail, stopped with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass

from services.runtime.cancellation import asked_to_end
from services.runtime.health import Health
from services.runtime.telemetry import Telemetry

_log = logging.getLogger(__name__)

#: Runs until it is cancelled; returning is as wrong as raising.
BackgroundLoop = Callable[[], Awaitable[None]]

BACKOFF_SECONDS_MIN = 0.5
BACKOFF_SECONDS_MAX = 30.0
#: A loop that ran this long before it failed starts over with the shortest wait.
STEADY_SECONDS = 60.0


@dataclass(slots=True)
class LoopState:
    """What is known about one loop."""

    running: bool = False
    failures: int = 0


class Loops:
    """Keeps a server's loops running.

    Each is a name of the health service, "loop.<name>", NOT_SERVING while it waits after a
    failure, and counts its failures in the metric `cogni.loop.failures`.
    """

    def __init__(
        self,
        loops: Mapping[str, BackgroundLoop],
        health: Health,
        telemetry: Telemetry,
        backoff_seconds_min: float = BACKOFF_SECONDS_MIN,
    ) -> None:
        self._loops = dict(loops)
        self._health = health
        self._backoff_seconds_min = backoff_seconds_min
        self._tasks: list[asyncio.Task[None]] = []
        self.states = {name: LoopState() for name in loops}
        telemetry.gauge("cogni.loop.failures", "How often a loop failed.", self._failures)

    def start(self) -> None:
        """Starts every loop; call it inside the event loop."""
        self._tasks = [
            asyncio.create_task(self._keep(name, loop), name=f"loop.{name}")
            for name, loop in self._loops.items()
        ]

    async def stop(self) -> None:
        """Cancels every loop and waits for its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _failures(self) -> Iterable[tuple[float, Mapping[str, str]]]:
        return [(state.failures, {"loop": name}) for name, state in self.states.items()]

    async def _keep(self, name: str, loop: BackgroundLoop) -> None:
        wait_seconds = self._backoff_seconds_min
        clock = asyncio.get_running_loop().time
        while True:
            begin = clock()
            self._mark(name, running=True)
            try:
                await loop()
                _log.error("loop %s ended by itself; it starts again", name)
            except asyncio.CancelledError:
                if asked_to_end():
                    raise
                # Nobody asked for it: a library let the end of its own work leak out.
                _log.exception("loop %s failed; it starts again", name)
            except Exception:
                _log.exception("loop %s failed; it starts again", name)
            self.states[name].failures += 1
            self._mark(name, running=False)
            if clock() - begin > STEADY_SECONDS:
                wait_seconds = self._backoff_seconds_min
            await asyncio.sleep(wait_seconds)
            wait_seconds = min(wait_seconds * 2, BACKOFF_SECONDS_MAX)

    def _mark(self, name: str, *, running: bool) -> None:
        self.states[name].running = running
        self._health.set(f"loop.{name}", running)
