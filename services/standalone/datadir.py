"""One stack's directory: who uses it now, where things are in it, how to reach the stack."""

import fcntl
import json
import os
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from services.standalone.errors import DataDirInUseError, StandaloneError
from services.standalone.keys import Keys
from services.standalone.private import write_private

LEFTOVER_SECONDS: Final = 20.0
POLL_SECONDS: Final = 0.05


@dataclass(frozen=True)
class Addresses:
    """How to reach a running stack."""

    pid: int
    executor: str
    scheduler: str
    connections: str
    ledger: str


class DataDir:
    """A stack's directory, held by at most one stack at a time.

    The hold ends with the last process that has `lock_descriptor` open, so that a new stack
    does not start while the remains of a killed one still write.
    """

    def __init__(self, path: Path) -> None:
        """Names the directory; nothing is created before `take`."""
        self.path = path.resolve()
        self.keys = Keys(self.path / "keys")
        self._lock: int | None = None

    @property
    def logs(self) -> Path:
        """Where each process logs."""
        return self.path / "logs"

    @property
    def lock_descriptor(self) -> int:
        """The open lock, for a process that must keep the directory held."""
        assert self._lock is not None
        return self._lock

    def take(self) -> None:
        """Holds the directory, creating it if needed.

        Raises DataDirInUseError with the pid of the stack that has it.
        """
        self._create()
        lock = os.open(self.path / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
        deadline = time.monotonic() + LEFTOVER_SECONDS
        while not _try_lock(lock):
            pid = _read_pid(lock)
            if pid is not None and _alive(pid):
                os.close(lock)
                raise DataDirInUseError(
                    f"{self.path} is in use by the stack with pid {pid}; stop it with "
                    f"`kill {pid}` or choose another directory with --data-dir."
                )
            if time.monotonic() > deadline:
                os.close(lock)
                raise DataDirInUseError(
                    f"{self.path} is still held by the remains of a stack that was killed; look "
                    f"for its processes with `ps`, or choose another directory with --data-dir."
                )
            time.sleep(POLL_SECONDS)
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(os.getpid()).encode(), 0)
        self._lock = lock

    def release(self) -> None:
        """Ends the hold. Idempotent."""
        if self._lock is not None:
            (self.path / "stack.json").unlink(missing_ok=True)
            os.close(self._lock)
            self._lock = None

    def publish(self, addresses: Addresses) -> None:
        """Leaves word of how to reach the stack, for `addresses` in other processes."""
        write_private(self.path / "stack.json", json.dumps(asdict(addresses), indent=2))

    def addresses(self) -> Addresses:
        """How to reach the stack that runs on this directory; StandaloneError if none does."""
        try:
            found = json.loads((self.path / "stack.json").read_text(encoding="utf-8"))
            addresses = Addresses(**found)
        except (FileNotFoundError, ValueError, TypeError):
            addresses = None
        if addresses is None or not _alive(addresses.pid):
            raise StandaloneError(
                f"No stack runs on {self.path}; start one with "
                f"`python -m services.standalone up --data-dir {self.path}`."
            )
        return addresses

    def _create(self) -> None:
        # Root's PostgreSQL runs as somebody else, who must be able to pass through.
        mode = 0o711 if os.geteuid() == 0 else 0o700
        try:
            self.path.mkdir(parents=True, exist_ok=True, mode=mode)
            self.logs.mkdir(exist_ok=True, mode=0o700)
        except OSError as error:
            raise StandaloneError(
                f"{self.path} cannot be used as a data directory: {error.strerror}."
            ) from error
        ignore = self.path / ".gitignore"
        if not ignore.exists():
            # Keys and a person's data: never to be committed by an `add -A`.
            ignore.write_text("*\n", encoding="ascii")


def _try_lock(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _read_pid(lock: int) -> int | None:
    text = os.pread(lock, 32, 0).decode("ascii", errors="replace").strip()
    return int(text) if text.isdigit() else None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
