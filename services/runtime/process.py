"""Runs a server as one operating-system process per core behind one port."""

from __future__ import annotations

import importlib
import logging
import multiprocessing
import multiprocessing.connection
import multiprocessing.resource_tracker
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from multiprocessing.context import SpawnProcess
from types import FrameType, FunctionType
from typing import Any

import uvloop

from services.runtime.errors import StartError
from services.runtime.port import Listen, reserve

_log = logging.getLogger(__name__)

#: A module-level coroutine function: it is imported anew in every spawned process.
Main = Callable[[Listen], Coroutine[Any, Any, None]]
#: Module and qualified name.
Name = tuple[str, str]

#: Exit codes: an operator's mistake, a child that died, Ctrl-C before there was anything to drain.
EXIT_START, EXIT_CHILD_DIED, EXIT_INTERRUPTED = 2, 1, 130
#: Children that outlive the stop signal by more than their drain and this are killed.
_STOP_MARGIN_SECONDS = 15.0
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def run_server(main: Main, *, listen: str, processes: int = 1, drain_seconds: float = 20.0) -> int:
    """Runs `main` until it is told to stop; returns the exit code for the process.

    The port is proved free first. With several processes each is spawned, never forked (a fork
    of a process that touched grpc.aio hangs), and binds the same port with SO_REUSEPORT; when
    one dies, all stop and the code is not zero, so that a supervisor restarts the whole.
    What keeps a process from starting is said in a sentence on stderr.
    """
    try:
        with reserve(listen, shared=processes > 1) as place:
            if processes > 1:
                return _supervise(main, place, processes, drain_seconds + _STOP_MARGIN_SECONDS)
        return _run(main, place)
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        return EXIT_START
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _run(main: Main, listen: Listen) -> int:
    # libuv's loop: a call wakes the loop four times, and each of asyncio's own rounds is Python.
    # 625 µs of a Ledger's CPU per charge against 751, 64 callers, both in turns.
    uvloop.run(main(listen))
    return 0


def _supervise(main: Main, listen: Listen, processes: int, stop_seconds: float) -> int:
    spawn = multiprocessing.get_context("spawn")
    children = [
        spawn.Process(target=_child, args=(_portable(main), listen), name=f"server-{index}")
        for index in range(processes)
    ]
    stop = threading.Event()

    def forward(number: int, frame: FrameType | None) -> None:
        # A second signal is forwarded too: it makes each child stop at once.
        stop.set()
        _terminate(children)

    for each in _STOP_SIGNALS:
        signal.signal(each, forward)
    with _stop_signals_held():
        for child in children:
            child.start()
    ended = multiprocessing.connection.wait([child.sentinel for child in children])
    for child in children:
        if child.sentinel in ended:
            # The sentinel closes a moment before the exit code can be had.
            child.join(_STOP_MARGIN_SECONDS)
    died_by_itself = not stop.is_set()
    if died_by_itself:
        _report(children)
        _terminate(children)
    _join(children, stop_seconds)
    failed = any(child.exitcode not in (0, -signal.SIGTERM) for child in children)
    return EXIT_CHILD_DIED if died_by_itself or failed else 0


@contextmanager
def _stop_signals_held() -> Iterator[None]:
    """Delivers stop signals only after the block, and to its new processes when they let them in.

    A signal between two starts would reach no child and never be sent again: the server ran on. A
    child that is still importing would answer the terminal's Ctrl-C with a traceback.
    """
    # Its start lets the signals in again, and the first child's would start it.
    multiprocessing.resource_tracker.ensure_running()
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)


def _report(children: list[SpawnProcess]) -> None:
    for child in children:
        if child.exitcode is not None:
            _log.error("%s ended with code %s; stopping the others", child.name, child.exitcode)


def _terminate(children: list[SpawnProcess]) -> None:
    for child in children:
        if child.pid is not None and child.exitcode is None:
            child.terminate()


def _join(children: list[SpawnProcess], seconds: float) -> None:
    end = time.monotonic() + seconds
    for child in children:
        child.join(max(0.0, end - time.monotonic()))
        if child.exitcode is None:
            _log.error("%s did not stop in time and is killed", child.name)
            child.kill()
            child.join()


def name_of(thing: Any) -> Name:
    """Where to find a function or class in another process.

    A spawned process does not run `python -m services.x` again, so what that __main__ defines
    cannot be pickled as "__main__.main": it is found by the module's own name.
    """
    module = thing.__module__
    if module == "__main__":
        spec = sys.modules[module].__spec__
        module = spec.name if spec is not None else module
    return module, thing.__qualname__


def find(name: Name) -> Any:
    """What `name_of` named."""
    return getattr(importlib.import_module(name[0]), name[1])


def _portable(main: Main) -> Main | Name:
    return name_of(main) if isinstance(main, FunctionType) else main


def _child(portable: Main | Name, listen: Listen) -> None:
    main: Main = find(portable) if isinstance(portable, tuple) else portable
    # Ctrl-C reaches the whole process group; the parent alone decides what it means.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOP_SIGNALS)
    threading.Thread(target=_stop_with_parent, name="parent-watch", daemon=True).start()
    try:
        sys.exit(_run(main, listen))
    except StartError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(EXIT_START)


def _stop_with_parent() -> None:
    """A parent that was killed forwards nothing: its children must notice by themselves."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os.kill(os.getpid(), signal.SIGTERM)
