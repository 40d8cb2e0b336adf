"""Ends what the stack started when the stack itself was killed.

Run by path with `python -I -S`. It reads lines from standard input, whose other end only the
supervisor holds: "+ STAGE GROUP" for a process group that started, "- GROUP" for one that is
gone. When the pipe ends without a "bye", the supervisor died: groups are terminated stage by
stage, lowest first, and killed if they linger. The parent-death signal of `launch` reaches only
a program itself; this reaches the programs that one started in turn, and works on macOS too.

    guard.py GRACE_SECONDS
"""

import contextlib
import os
import signal
import sys
import time

POLL_SECONDS = 0.05


def main(argv: list[str]) -> None:
    """Follows the supervisor's lines until it says goodbye or dies."""
    # The terminal's Ctrl-C and the shell's hang-up are the supervisor's business.
    for ignored in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(ignored, signal.SIG_IGN)
    groups: dict[int, int] = {}
    for line in sys.stdin:
        words = line.split()
        if words[0] == "+":
            groups[int(words[2])] = int(words[1])
        elif words[0] == "-":
            groups.pop(int(words[1]), None)
        elif words[0] == "bye":
            return
    for stage in sorted(set(groups.values())):
        _end([group for group, at in groups.items() if at == stage], float(argv[1]))


def _end(groups: list[int], grace_seconds: float) -> None:
    for group in groups:
        _signal(group, signal.SIGTERM)
    deadline = time.monotonic() + grace_seconds
    while any(_signal(group, 0) for group in groups) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for group in groups:
        _signal(group, signal.SIGKILL)


def _signal(group: int, number: int) -> bool:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, number)
        return True
    return False


if __name__ == "__main__":
    main(sys.argv)
