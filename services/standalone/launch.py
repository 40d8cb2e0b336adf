"""Becomes another program that dies with its parent, under another user if asked.

Run by path with `python -I -S`, so it imports nothing of ours. A wrapper instead of Popen's
`preexec_fn`, because that runs Python in a fork of a process that may have gRPC threads, and
instead of Popen's `user=`, because the kernel forgets the parent-death signal when the user
changes: the order here is user, signal, exec.

    launch.py PARENT_PID SIGNAL UID GID PROGRAM ARGUMENT...

SIGNAL is sent when the thread that started the wrapper ends. UID and GID are -1 to keep them.
Where the kernel has no such signal (macOS), the program simply runs.
"""

# ctypes first: once the user has changed, the standard library may be out of reach.
import ctypes
import os
import sys

PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Replaces this process by the program in `argv`; returns only if it could not."""
    parent, death_signal, uid, gid = (int(value) for value in argv[1:5])
    if uid >= 0:
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, death_signal, 0, 0, 0)
        # The parent may have died before the signal was asked for.
        if os.getppid() != parent:
            sys.exit(0)
    os.execv(argv[5], argv[5:])  # noqa: S606


if __name__ == "__main__":
    main(sys.argv)
