"""Starts processes, gates on their health, restarts those that crash, stops all in order."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

from services.standalone import guard
from services.standalone.children import START_SECONDS, STOP_SECONDS, Child, Stage
from services.standalone.errors import StandaloneError

WATCH_SECONDS: Final = 0.05
READY_POLL_SECONDS: Final = 0.02
LOG_CHECK_SECONDS: Final = 5.0
GUARD_GRACE_SECONDS: Final = 5.0

Report = Callable[[str, str], None]


@dataclass(frozen=True)
class RestartPolicy:
    """How often a process may crash before the stack gives up."""

    crashes_max: int = 5
    window_seconds: float = 60.0
    delay_seconds_first: float = 0.2
    delay_seconds_max: float = 5.0

    def delay(self, crashes: int) -> float:
        """Seconds to wait after the given number of crashes within the window."""
        return min(self.delay_seconds_first * 2.0 ** (crashes - 1), self.delay_seconds_max)


@dataclass
class _Running:
    child: Child
    process: subprocess.Popen[bytes]
    crashes: deque[float] = field(default_factory=deque)
    restart_at: float | None = None
    readying: asyncio.Task[None] | None = None


class Guard:
    """Our end of the pipe to the guard process."""

    def __init__(self, *, keep_open: Sequence[int] = ()) -> None:
        """Starts the guard, which also holds the descriptors `keep_open` until it ends."""
        self._process = subprocess.Popen(  # noqa: S603
            [sys.executable, "-I", "-S", guard.__file__, str(GUARD_GRACE_SECONDS)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=keep_open,
            process_group=0,
        )

    def add(self, group: int, stage: Stage) -> None:
        """Tells it of a group that started."""
        self._say(f"+ {int(stage)} {group}")

    def remove(self, group: int) -> None:
        """Tells it of a group that is gone, before the kernel gives its number to another."""
        self._say(f"- {group}")

    def dismiss(self) -> None:
        """Ends it: everything was stopped."""
        self._say("bye")
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()
        self._process.wait()

    def _say(self, line: str) -> None:
        # A guard that somebody killed guards nothing; the stack works on without it.
        with contextlib.suppress(BrokenPipeError, ValueError):
            if self._process.stdin is not None:
                self._process.stdin.write(line.encode() + b"\n")
                self._process.stdin.flush()


class Supervisor:
    """Runs children on the calling thread's event loop.

    Children die with this thread, so it must be the main one. `report(name, what)` is called
    for each thing a person would want to see.
    """

    def __init__(
        self,
        report: Report,
        *,
        policy: RestartPolicy | None = None,
        start_seconds: float = START_SECONDS,
        stop_seconds: float = STOP_SECONDS,
        keep_open: Sequence[int] = (),
    ) -> None:
        """Starts nothing but the guard; `keep_open` are descriptors the guard holds as well."""
        self._report = report
        self._policy = policy or RestartPolicy()
        self._start_seconds = start_seconds
        self._stop_seconds = stop_seconds
        self._running: dict[str, _Running] = {}
        self._guard = Guard(keep_open=keep_open)
        self._failure: asyncio.Future[None] | None = None

    @property
    def own_pid(self) -> int:
        """The process id of the supervisor, which stops the stack when it gets SIGTERM."""
        return os.getpid()

    def pid(self, name: str) -> int:
        """The process id of the child `name`."""
        return self._running[name].process.pid

    async def start(self, children: Sequence[Child]) -> None:
        """Launches all and returns when all are ready.

        Raises StandaloneError when one ends or is not ready in time; those that run stay for
        `stop` to stop.
        """
        for child in children:
            self._launch(child)
        waits = [asyncio.create_task(self._await_first_ready(child.name)) for child in children]
        try:
            await asyncio.gather(*waits)
        finally:
            for wait in waits:
                wait.cancel()

    async def watch(self) -> None:
        """Restarts what crashes, for ever; StandaloneError when one crashes too often."""
        loop = asyncio.get_running_loop()
        self._failure = loop.create_future()
        checked = time.monotonic()
        while not self._failure.done():
            for running in list(self._running.values()):
                self._attend(running)
            if time.monotonic() - checked > LOG_CHECK_SECONDS:
                checked = time.monotonic()
                for running in self._running.values():
                    running.child.log.rotate()
            await asyncio.wait({self._failure}, timeout=WATCH_SECONDS)
        self._failure.result()

    async def stop(self) -> None:
        """Stops everything in the order of stages, and returns when nothing is left."""
        for running in self._running.values():
            if running.readying is not None:
                running.readying.cancel()
        for stage in Stage:
            members = [r for r in self._running.values() if r.child.stage == stage]
            if members:
                self._report("stop", ", ".join(member.child.name for member in members))
                await asyncio.gather(*(self._end(member) for member in members))
        self._running.clear()
        self._guard.dismiss()

    def kill(self) -> None:
        """Kills everything at once; for the person who does not want to wait for `stop`."""
        for running in self._running.values():
            self._kill_group(running.process.pid)

    def _launch(self, child: Child) -> None:
        process = child.launch()
        self._guard.add(process.pid, child.stage)
        known = self._running.get(child.name)
        if known is None:
            self._running[child.name] = _Running(child, process)
        else:
            known.process = process
            known.restart_at = None

    async def _await_first_ready(self, name: str) -> None:
        began = time.monotonic()
        await self._await_ready(self._running[name])
        self._report("ready", f"{name} {time.monotonic() - began:.1f} s")

    async def _await_ready(self, running: _Running) -> None:
        child, process = running.child, running.process
        deadline = time.monotonic() + self._start_seconds
        while not await child.is_ready():
            code = process.poll()
            if code is not None:
                raise StandaloneError(
                    f"{child.name} {_how_it_ended(code)} while starting. {child.log.last_words()} "
                    f"(all of it: {child.log.path})"
                )
            if time.monotonic() > deadline:
                raise StandaloneError(
                    f"{child.name} was not ready after {self._start_seconds:.0f} s. "
                    f"{child.log.last_words()} (all of it: {child.log.path})"
                )
            await asyncio.sleep(READY_POLL_SECONDS)

    def _attend(self, running: _Running) -> None:
        now = time.monotonic()
        if running.restart_at is not None:
            if now >= running.restart_at and not self._lacks_ground(running.child):
                self._relaunch(running)
            return
        code = running.process.poll()
        if code is not None:
            self._crashed(running, _how_it_ended(code), now)

    def _lacks_ground(self, child: Child) -> bool:
        """Whether the broker or the database below is away: starting now would only fail."""
        return any(
            other.restart_at is not None
            or (other.readying is not None and not other.readying.done())
            for other in self._running.values()
            if other.child.stage > max(child.stage, Stage.SERVERS)
        )

    def _crashed(self, running: _Running, how: str, now: float) -> None:
        child = running.child
        if running.readying is not None:
            running.readying.cancel()
            running.readying = None
        # What the process itself had started works on without it and would answer twice.
        self._kill_group(running.process.pid)
        self._guard.remove(running.process.pid)
        running.crashes.append(now)
        while running.crashes and now - running.crashes[0] > self._policy.window_seconds:
            running.crashes.popleft()
        crashes = len(running.crashes)
        if crashes > self._policy.crashes_max:
            self._fail(
                f"{child.name} {how} and crashed {crashes} times in "
                f"{self._policy.window_seconds:.0f} s, so the stack stops. "
                f"{child.log.last_words()} (all of it: {child.log.path})"
            )
            return
        delay = self._policy.delay(crashes)
        running.restart_at = now + delay
        self._report("crash", f"{child.name} {how}; restarting in {delay:.1f} s")

    def _relaunch(self, running: _Running) -> None:
        try:
            self._launch(running.child)
        except (StandaloneError, OSError) as error:
            self._fail(f"{running.child.name} could not be restarted: {error}")
            return
        running.readying = asyncio.create_task(self._readied_again(running))

    async def _readied_again(self, running: _Running) -> None:
        began = time.monotonic()
        try:
            await self._await_ready(running)
        except StandaloneError:
            # Ended: the watch sees it. Too slow: ending it makes it a crash like any other.
            self._kill_group(running.process.pid)
            return
        took = time.monotonic() - began
        self._report("restarted", f"{running.child.name} serves again after {took:.1f} s")

    def _fail(self, sentence: str) -> None:
        if self._failure is not None and not self._failure.done():
            self._failure.set_exception(StandaloneError(sentence))

    async def _end(self, running: _Running) -> None:
        process = running.process
        if process.poll() is None:
            process.send_signal(running.child.stop_signal)
        try:
            await asyncio.to_thread(process.wait, self._stop_seconds)
        except subprocess.TimeoutExpired:
            self._report("killed", f"{running.child.name} did not stop in time")
        self._kill_group(process.pid)
        process.wait()
        self._guard.remove(process.pid)

    def _kill_group(self, group: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(group, signal.SIGKILL)


def _how_it_ended(code: int) -> str:
    if code < 0:
        return f"was ended by {signal.Signals(-code).name}"
    return f"ended with code {code}"
